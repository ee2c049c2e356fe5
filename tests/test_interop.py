"""The authors' tensors in and out: kept cases and random layers come back bit for bit, mistakes are told."""

import contextlib
import importlib.util
import json
import resource
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pom_jax import interop, nn
from pom_jax.errors import InputError
from pom_jax.interop.files import state_dict
from pom_jax.nn import pom_fields
from tests.golden import run
from tests.golden.case import load
from tests.official_models import normal, same_bits

D, K, E = 8, 3, 16
Tensors = dict[str, Any]
CASES = [
    path
    for pattern in ("homm_hom*", "pom_d*", "pom_state*", "rope?d_*")
    for path in sorted(run.DATA.glob(f"{pattern}.npz"))
]


def parameters(layer: nn.PoM, width: int, seed: int = 0) -> Any:
    """Random variables of a layer, without compiling its initialisers."""
    x, key = jnp.zeros((1, 1, width)), jax.random.key(0)
    positions = np.zeros((1, layer.rotary.axes)) if layer.rotary else None
    shapes = jax.eval_shape(lambda: layer.init(key, x, positions=positions))
    return jax.tree.map(lambda leaf: normal(*leaf.shape, seed=seed), shapes)


def plain(layer: nn.PoM) -> nn.PoM:
    """The layer with what is the same to it said in one way."""
    biased = layer.form == "product" if layer.use_bias is None else layer.use_bias
    return layer.clone(gate_heads=max(1, layer.gate_heads), use_bias=biased)


def fused(**more: Any) -> Tensors:
    """The state dict of a small `PoM` with a gate for each of 4 heads."""
    tensors = {
        "qc_proj.weight": normal(E + 4, D),
        "se_bias": normal(4),
        "po_coeff": normal(E, K),
        "ag_proj.weight": normal(D, E),
    }
    return tensors | more


def split() -> Tensors:
    tensors = fused()
    both = tensors.pop("qc_proj.weight")
    return tensors | {
        "po_proj.weight": both[:E],
        "se_proj.weight": both[E:],
        "se_proj.bias": tensors.pop("se_bias"),
    }


def grouped(**more: Any) -> Tensors:
    tensors = split() | {"po_proj.weight": normal(E, D // 2, 1)}
    return tensors | more


def product() -> Tensors:
    names = {"ho_proj": (2 * E, D), "se_proj": (2 * E, D), "ag_proj": (D, 2 * E)}
    tensors = {f"{name}.weight": normal(*shape) for name, shape in names.items()}
    return tensors | {f"{name}.bias": normal(shape[0]) for name, shape in names.items()}


def tables(base: float, *lengths: int) -> Tensors:
    """Rotary tables by the definition, in float64 and rounded."""
    half = E // (2 * len(lengths))
    names = ("freqs",) if len(lengths) == 1 else ("row", "col")
    found = {}
    for name, length in zip(names, lengths, strict=True):
        angles = np.arange(length)[:, None] * float(base) ** -(np.arange(half) / half)
        found |= {f"{name}_cos": np.cos(angles), f"{name}_sin": np.sin(angles)}
    return {name: table.astype(np.float32) for name, table in found.items()}


@pytest.mark.parametrize("path", [pytest.param(p, marks=pytest.mark.smoke, id=p.stem) for p in CASES])
def test_official_layers_are_recognised_and_come_back_bit_for_bit(path):
    case = load(path)
    made, prefix = case.meta["constructor"], "hom." if "homlayer" in path.stem else ""
    tensors = case.group("param")
    layer, variables = interop.import_layer(tensors, degree=made.get("order"), prefix=prefix or None)
    lengths = {k: v for k, v in made.items() if k.startswith("max_")}
    back = interop.export_layer(layer, variables, positions=tuple(lengths.values()) or None)
    theirs = {name[len(prefix) :]: array for name, array in tensors.items() if name.startswith(prefix)}
    for name in [name for name in back if name.endswith(("_cos", "_sin"))]:
        np.testing.assert_allclose(back.pop(name), theirs.pop(name), atol=2e-6)
    same_bits(back, theirs)
    if "order" in made:
        wanted = nn.PoM("product", made["order"], made["order_expand"], use_bias=made.get("bias", True))
    else:
        heads, groups, axes = made["n_sel_heads"], made["n_groups"], 1 + made.get("rope_2d", False)
        rotary = nn.Rotary(axes, made["rope_base"]) if "rope_base" in made else None
        options = {"use_bias": made["bias"], "rotary": rotary}
        wanted = nn.PoM("power", made["degree"], made["expand"], heads, groups, **options)
    assert plain(layer) == plain(wanted)


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.PoM, int]:
    """A mixer that the authors have too, and its width."""
    form, degree = draw(st.sampled_from(pom_fields.FORMS)), draw(st.integers(1, 5))
    use_bias, expansion = draw(st.sampled_from([None, True, False])), draw(st.integers(1, 3))
    if form == "product":
        return nn.PoM(form, degree, expansion, use_bias=use_bias), draw(st.integers(1, 9))
    axes = draw(st.sampled_from([None, 1, 2]))
    options: dict[str, Any] = {}
    if axes:
        options["rotary"] = nn.Rotary(axes, draw(st.sampled_from([100.0, 10_000.0, 500_000.0])))
        options["feature_scale"] = draw(st.booleans())
        options["clamp"] = (-0.1, 1.0) if options["feature_scale"] else nn.PoM.clamp
    heads, groups = draw(st.sampled_from([0, 1, 4])), draw(st.sampled_from([1, 2]))
    return nn.PoM(form, degree, expansion, heads, groups, use_bias, **options), 8


@settings(max_examples=10, deadline=None)
@given(layers(), st.integers(0, 99))
def test_layers_come_back_bit_for_bit(layer_and_width, seed):
    layer, width = layer_and_width
    variables = parameters(layer, width, seed)
    layouts: list[str | None] = [None]
    if layer.form == "power" and layer.groups == 1 and not layer.use_bias and layer.rotary is None:
        layouts.append("split")
    for layout in layouts:
        tensors = interop.export_layer(layer, variables, layout)
        degree = layer.degree if layer.form == "product" else None
        again, back = interop.import_layer(tensors, degree=degree)
        same_bits(back, variables)
        assert plain(again) == plain(layer)


def test_split_is_fused_cut_in_two():
    apart, apart_variables = interop.import_layer(split())
    whole, whole_variables = interop.import_layer(fused())
    assert apart == whole
    same_bits(apart_variables, whole_variables)


def test_sd3_scales_the_features_and_clamps_them_at_one():
    scale = np.linspace(0.01, 5, E, dtype=np.float32)
    tensors = fused(h_scale=scale, **tables(10_000, 4))
    layer, variables = interop.import_layer(tensors)
    x = 3 * normal(1, 1, D)
    u = scale * (tensors["qc_proj.weight"][:E] @ x[0, 0])
    a = np.clip(np.where(u < 0, 0.01 * u, u), -0.1, 1.0)
    gate = np.clip((tensors["qc_proj.weight"][E:] @ x[0, 0] + tensors["se_bias"]) / 6 + 0.5, 0, 1)
    features = sum(tensors["po_coeff"][:, i] * a ** (i + 1) for i in range(K))
    # Alone at position 0 nothing turns.
    np.testing.assert_allclose(
        jax.jit(layer.apply)(variables, x)[0, 0],
        tensors["ag_proj.weight"] @ (features * gate.repeat(4)),
        rtol=1e-4,
        atol=1e-5,
    )
    assert (np.abs(u) > 1).any()


@pytest.mark.parametrize(
    ("base", "lengths"), [(100, (20,)), (500_000, (3000,)), (1234, (6, 9)), (10_000, (1, 1))]
)
def test_rotary_tables_tell_axes_and_base(base, lengths):
    layer, variables = interop.import_layer(fused(**tables(base, *lengths)))
    assert layer.rotary == nn.Rotary(len(lengths), base)
    back = interop.export_layer(layer, variables, positions=lengths)
    for name, table in tables(base, *lengths).items():
        np.testing.assert_allclose(back[name], table, atol=5e-4)
    halved = {name: table.astype(ml_dtypes.bfloat16) for name, table in tables(10_000, *lengths).items()}
    assert interop.import_layer(fused(**halved))[0].rotary == nn.Rotary(len(lengths))


def test_rotary_given_is_checked_or_stands_in_for_tables():
    wanted = nn.Rotary(base=100.0)
    assert interop.import_layer(fused(h_scale=normal(E)), rotary=wanted)[0].rotary == wanted
    assert interop.import_layer(fused(**tables(100, 8)), rotary=wanted)[0].rotary == wanted
    with pytest.raises(InputError, match=r"are not those of Rotary\(axes=1, base=200"):
        interop.import_layer(fused(**tables(100, 8)), rotary=nn.Rotary(base=200.0))
    spoilt = tables(100, 8)
    spoilt["freqs_cos"][5, 1] += 0.01
    with pytest.raises(InputError, match="freqs_cos, freqs_sin are not those of any base"):
        interop.import_layer(fused(**spoilt))


class Tensor:
    """What is used of a torch tensor, which the tests have to do without."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape

    def detach(self):
        return self

    cpu = __array__ = detach

    def float(self):
        return Tensor(self.array.astype(np.float32))

    def numpy(self):
        if self.array.dtype == ml_dtypes.bfloat16:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, Tensor])
def test_tensors_of_any_kind_and_precision(kind, dtype):
    tensors = {name: kind(array.astype(dtype)) for name, array in fused().items()}
    _, variables = interop.import_layer(tensors)
    wanted = {name: array.astype(dtype).astype(np.float32) for name, array in fused().items()}
    same_bits(variables, interop.import_layer(wanted)[1])


MODEL = {f"model._orig_mod.layers.{i}.hom.{k}": v + i for i in (0, 1) for k, v in product().items()}
MODEL |= {name.replace("model.", "ema.ema_model."): array + 2 for name, array in MODEL.items()}
MODEL["model._orig_mod.classes_emb.weight"] = normal(3, D)


def test_layers_of_a_model_are_found_behind_what_wraps_it():
    online, ema = "model.layers.{}.hom", "ema.ema_model.layers.{}.hom"
    assert interop.find_layers(MODEL) == tuple(place.format(i) for place in (online, ema) for i in (0, 1))
    for prefix in ("layers.1.hom", "layers.1.hom.", online.format(1), "module.model._orig_mod.layers.1.hom"):
        _, variables = interop.import_layer(MODEL, degree=2, prefix=prefix)
        np.testing.assert_array_equal(variables["params"]["out"]["bias"], product()["ag_proj.bias"] + 1)
    _, variables = interop.import_layer(MODEL, degree=2, prefix=ema.format(0))
    np.testing.assert_array_equal(variables["params"]["out"]["bias"], product()["ag_proj.bias"] + 2)
    alone = {f"_orig_mod.module.{name}": array for name, array in fused().items()}
    same_bits(interop.import_layer(alone)[1], interop.import_layer(fused())[1])


def test_layers_stay_as_they_are_when_the_tensors_change():
    tensors = fused()
    _, variables = interop.import_layer(tensors)
    for array in tensors.values():
        array += 1
    same_bits(variables, interop.import_layer(fused())[1])


def without(tensors: Tensors, *names: str) -> Tensors:
    return {name: array for name, array in tensors.items() if name not in names}


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "several layers": (MODEL, {}, "4 layers, at 'model.layers.0.hom', .*pass prefix="),
    "no such layer": (MODEL, {"prefix": "layers.7.hom"}, r"'layers.7.hom' is no layer; .*did you mean"),
    "no layer at all": ({"fc.weight": normal(2, 2)}, {}, r"no layer is among the 1 tensors \(fc.weight"),
    "nothing": ({}, {}, r"no layer is among the 0 tensors \(none"),
    "no mapping": ([1], {}, "a list, a mapping"),
    "names that are numbers": ({1: normal(2)}, {}, "the name 1, all names must be strings"),
    "one name twice": (fused(**{"_orig_mod.se_bias": normal(4)}), {}, "se_bias and _orig_mod.se_bias"),
    "two layouts": (product() | fused(), {}, "several layouts.* ho_proj.weight, qc_proj.weight"),
    "missing": (without(fused(), "se_bias"), {}, "missing: se_bias"),
    "projection": (without(fused(), "qc_proj.weight"), {}, "missing: qc_proj.weight"),
    "half the biases": (without(product(), "se_proj.bias"), {"degree": 2}, "missing: se_proj.bias"),
    "half the tables": (fused(**without(tables(10, 5), "freqs_cos")), {}, "missing: freqs_cos"),
    "no tables": (fused(h_scale=normal(E)), {}, r"rotary tables that go with h_scale; pass rotary=Rotary"),
    "tables of both": (fused(**tables(10, 5), **tables(10, 5, 5)), {}, "unexpected: col_cos"),
    "tables of HoM": (product() | tables(10, 5), {"degree": 2}, "unexpected: freqs_cos"),
    "sigmoid": (without(split(), "se_proj.bias"), {}, "missing: se_proj.bias; .*sigmoid"),
    "bias": (split() | {"po_proj.bias": normal(E)}, {}, "unexpected: po_proj.bias; .*ungrouped"),
    "unexpected": (fused(other=normal(1)), {}, "unexpected: other"),
    "whole numbers": (fused(se_bias=np.arange(4)), {}, "dtype of se_bias: int64"),
    "text": (fused(se_bias="four"), {}, "dtype of se_bias: <U4"),
    "too few axes": (fused(po_coeff=normal(E)), {}, r"shape of po_coeff: \[16\], 2 axes"),
    "empty": (fused(se_bias=normal(0)), {}, r"shape of se_bias: \[0\], 1 axes that are not empty"),
    "shape": (fused(se_bias=normal(5)), {}, r"se_bias: \[5\], but \[4\] goes with D = 8 and E = 16"),
    "table shape": (fused(**tables(10, 5, 5)) | {"col_sin": normal(4, 4)}, {}, r"\[4, 4\], but \[5, 4\]"),
    "one gate": (fused(**{"qc_proj.weight": normal(E + 1, D)}), {}, "1 rows of the gate: E = 16"),
    "gates": (fused(**{"qc_proj.weight": normal(E + 5, D)}), {}, "5 rows of the gate"),
    "expansion": (fused(**{"qc_proj.weight": normal(E + 4, 7)}), {}, "E = 16 rows, not a multiple of D = 7"),
    "one group": (grouped(**{"po_proj.weight": normal(E, D, 1)}), {}, "has 8 columns: at least 2 groups"),
    "groups": (grouped(**{"po_proj.weight": normal(E, 3, 1)}), {}, "has 3 columns: at least 2 groups"),
    "no degree": (product(), {}, r"degree is needed: .*degree \* expansion = 4; pass degree="),
    "odd degree": (product(), {"degree": 3}, r"degree = 3 does not divide degree \* expansion = 4"),
    "no number": (product(), {"degree": "2"}, "degree = '2' does not divide"),
    "other degree": (fused(), {"degree": 2}, r"degree = 2, but po_coeff \[E, K\] has K = 3"),
    "rotary HoM": (product(), {"degree": 2, "rotary": nn.Rotary()}, "no rotary positions; leave it out"),
    "axes": (fused(), {"rotary": nn.Rotary(3)}, r"E = 16 must be a multiple of 6"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_tensors_are_told(name):
    tensors, options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        interop.import_layer(tensors, **options)


def test_all_that_is_wrong_is_in_one_message():
    tensors = without(fused(other=normal(1), more=np.arange(3)), "se_bias", "po_coeff")
    with pytest.raises(InputError) as error:
        interop.import_layer(tensors)
    for part in ("se_bias", "po_coeff", "other", "more", "int64", "'fused' (pom's PoM)"):
        assert part in str(error.value)
    with pytest.raises(InputError, match=r"(?s)se_bias: \[5\].*ag_proj.weight: \[16, 8\]"):
        interop.import_layer(fused(**{"se_bias": normal(5), "ag_proj.weight": normal(E, D)}))


shapes = st.lists(st.integers(0, 20), max_size=3).map(lambda sizes: normal(*sizes))


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_nothing_but_input_errors_escapes(data):
    tensors = data.draw(
        st.sampled_from([product(), fused(**tables(10, 5)), fused(**tables(10, 5, 5)), grouped()])
    )
    for _ in range(12):
        name = data.draw(st.sampled_from(sorted(tensors)))
        try:
            interop.import_layer(tensors | {name: data.draw(shapes)}, degree=data.draw(st.integers(-1, 5)))
        except InputError:
            continue


def power(**options: Any) -> nn.PoM:
    return nn.PoM("power", K, 2, **options)


@pytest.mark.parametrize(
    ("layer", "layout", "message"),
    [
        (power(clamp=(-0.1, 1.0)), None, r"clamp = \(-0.1, 1.0\) has no place in the layout 'fused'"),
        (power(clamp=None), None, "clamp = None has no place"),
        (power(slope=0.2), None, "slope = 0.2 has no place"),
        (power(reads=("own", "past")), None, r"reads = \('own', 'past'\) has no place"),
        (power(phase=nn.Phase(((8.0,),))), None, r"phase = Phase\(.* has no place"),
        (power(rotary=nn.Rotary(3)), None, r"rotary = Rotary\(axes=3.* has no place: .* one or two axes"),
        (power(rotary=nn.Rotary(), feature_scale=True), None, r"clamp = .*\(clamp=\(-0.1, 1.0\)\)"),
        (power(feature_scale=True, clamp=(-0.1, 1.0)), None, "feature_scale = True without rotary"),
        (power(groups=2), "fused", "groups = 2 has no place in the layout 'fused'"),
        (power(), "grouped", "groups = 1 has no place in the layout 'grouped'"),
        (power(use_bias=True), "split", "use_bias = True has no place in the layout 'split'"),
        (power(rotary=nn.Rotary()), "split", r"rotary = Rotary\(.* has no place in the layout 'split'"),
        (power(), "product", "form = 'power' has no place in the layout 'product'"),
        (nn.PoM(rotary=nn.Rotary()), None, r"rotary = Rotary\(.* has no place in the layout 'product'"),
        (nn.PoM(), "fused", "form = 'product' has no place in the layout 'fused'"),
        (nn.PoM(), "fusd", "Did you mean 'fused'"),
        (power(gate_heads=5), None, "gate_heads = 5 does not divide"),
    ],
)
def test_options_without_a_place_are_named(layer, layout, message):
    with pytest.raises(InputError, match=message):
        interop.export_layer(layer, {"params": {"out": {"kernel": normal(E, D)}}}, layout)


def test_parameters_that_do_not_fit_the_layer_are_told():
    layer, variables = interop.import_layer(fused())
    tree = variables["params"]
    same_bits(interop.export_layer(layer, tree), fused())
    tree = tree | {"gate": {"kernel": normal(D, 3), "scale": normal(1)}, "coefficients": np.ones((E, K), int)}
    with pytest.raises(InputError, match="D = 8") as error:
        interop.export_layer(layer, {"params": tree})
    for part in (
        "missing: gate/bias",
        "unexpected: gate/scale",
        "[8, 3], but the layer's is [8, 4]",
        "int64",
    ):
        assert part in str(error.value)
    with pytest.raises(InputError, match="no out/kernel"):
        interop.export_layer(layer, {"params": {}})
    with pytest.raises(InputError, match="no rotary tables; leave it out"):
        interop.export_layer(layer, variables, positions=(8,))
    layer, variables = interop.import_layer(fused(**tables(100, 8)))
    lengths: Any = ((8, 8), (0,), (2.5,), ())
    for wrong in lengths:
        with pytest.raises(InputError, match="a length of at least 1 for each of 1 axes"):
            interop.export_layer(layer, variables, positions=wrong)


def test_safetensors_keep_every_bit(tmp_path):
    path = tmp_path / "new" / "layer.safetensors"
    tensors = fused(table=normal(3, 5).T, half=normal(4).astype(ml_dtypes.bfloat16), steps=np.arange(3))
    interop.write_tensors(path, tensors)
    back = interop.read_tensors(str(path))
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert [found.name for found in path.parent.iterdir()] == ["layer.safetensors"]


def test_files_that_cannot_be_read_are_told(tmp_path):
    with pytest.raises(InputError, match="is no file"):
        interop.read_tensors(tmp_path / "nowhere.safetensors")
    for name, message in (("layer.npz", "ends in '.npz'"), ("layer.safetensors", "no file of safetensors")):
        (tmp_path / name).write_bytes(b"not one tensor in here")
        with pytest.raises(InputError, match=message):
            interop.read_tensors(tmp_path / name)
    with pytest.raises(InputError, match=r"not in \.safetensors, the only format"):
        interop.write_tensors(tmp_path / "layer.pt", fused())
    (tmp_path / "layer.pt").write_bytes(b"not one tensor in here")
    installed = importlib.util.find_spec("torch") is not None
    with pytest.raises(InputError, match="no torch file" if installed else "pip install torch, or save"):
        interop.read_tensors(tmp_path / "layer.pt")


def test_damaged_safetensors_are_told(tmp_path):
    path, rng = tmp_path / "layer.safetensors", np.random.default_rng(0)
    interop.write_tensors(path, fused())
    whole = path.read_bytes()
    for cut in np.linspace(0, len(whole) - 1, 20).astype(int):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"layer.safetensors is no file of .*download it again"):
            interop.read_tensors(path)
    for _ in range(60):
        data = bytearray(whole)
        data[rng.integers(300)] = rng.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(InputError):  # a letter of a name may change unseen
            interop.read_tensors(path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_dtypes_that_numpy_lacks_are_told(dtype, tmp_path):
    entries = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    entries |= {"b": {"dtype": dtype, "shape": [4], "data_offsets": [4, 8]}}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "layer.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(InputError, match=rf"layer.safetensors: b is {dtype} \(1 of 2 .*bfloat16 or float32"):
        interop.read_tensors(path)


def test_a_disk_that_refuses_is_told(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(InputError, match=r"layer.safetensors cannot be written: .*make room"):
            interop.write_tensors(tmp_path / "layer.safetensors", fused())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_nest_their_tensors():
    tensors = {name: Tensor(array) for name, array in fused().items()}
    for loaded in (
        tensors,
        {"epoch": 3, "state_dict": tensors | {"step": 7}},
        {"state_dict": {"state_dict": tensors}},
    ):
        same_bits(state_dict(loaded), fused())
    for loaded, message in (
        (7, "an? int, no mapping"),
        ({"epoch": 3}, "epoch, and no tensor"),
        ({}, "nothing"),
    ):
        with pytest.raises(InputError, match=message):
            state_dict(loaded)


def test_torch_checkpoints_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in fused().items()}
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "last.ckpt")
    same_bits(interop.read_tensors(tmp_path / "last.ckpt"), fused())
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    wanted = {name: array.astype(ml_dtypes.bfloat16).astype(np.float32) for name, array in fused().items()}
    same_bits(interop.import_layer(half)[1], interop.import_layer(wanted)[1])


def test_nothing_is_imported_before_it_is_used():
    code = "import sys, pom_jax.interop; print({'torch', 'safetensors'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
