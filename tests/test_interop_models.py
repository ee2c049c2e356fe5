"""Whole checkpoints in and out: every known model comes back bit for bit, samples and trains on."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import common
from pom_jax import interop, models, sampling
from pom_jax.diffusion.schedules import resolution_shift
from pom_jax.errors import InputError
from pom_jax.interop.listing import listing
from pom_jax.interop.workdirs import export_workdir, import_workdir, overrides
from pom_jax.training import checkpoint
from pom_jax.training.run import make_run
from pom_jax.training.start import find_start
from tests.golden.case import load
from tests.golden.run import DATA
from tests.official_models import MODELS, TINY, normal, same_bits, theirs, told

ROOT = Path(__file__).resolve().parents[1]
Tensors = dict[str, Any]


def parameters(model: models.DiPoM, seed: int = 0) -> Any:
    """Random ones, without compiling the initialisers."""
    shapes = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: normal(*leaf.shape, seed=seed), shapes)


@pytest.mark.smoke
@pytest.mark.parametrize("layout", MODELS)
def test_models_are_recognised_and_come_back_bit_for_bit(layout: str) -> None:
    tensors = theirs(layout)
    found = interop.import_model(tensors, **told(layout))
    assert (found.layout, found.weights) == (layout, "online")
    assert found.model.clone(dtype=None) == MODELS[layout]
    assert jax.tree.structure(found.params) == jax.tree.structure(parameters(found.model))
    same_bits(interop.export_model(found.model, found.params), tensors)


@pytest.mark.parametrize("name", ["dih_tiny_k4_t250_inttime", "dihpp_tiny_clamp", "dit_tiny"])
def test_official_models_come_back_bit_for_bit(name: str) -> None:
    case = load(DATA / f"{name}.npz")
    made, tensors = case.meta["constructor"], case.group("param")
    options = {"image_size": made["im_size"], "degree": made.get("order"), "num_heads": made.get("n_heads")}
    found = interop.import_model(tensors, **options)
    back = interop.export_model(found.model, found.params)
    np.testing.assert_allclose(back.pop("freqs"), tensors.pop("freqs"), rtol=1e-6)
    same_bits(back, tensors)


@pytest.mark.parametrize("layout", ["dih", "dihpp"])
def test_gates_of_models_made_here_come_back_bit_for_bit(layout: str) -> None:
    model = MODELS[layout].clone(unit_gates=False)
    params = parameters(model)
    params["blocks"]["modulation"]["bias"][0, 2, :3] = 0.0, 1e-3, -3e-8  # of a gate
    tensors = interop.export_model(model, params)
    assert {n for n, a in tensors.items() if a.dtype != np.float32} == {
        f"layers.{i}.gate_mlp.1.bias" for i in range(2)
    }
    back = interop.import_model(tensors, **told(layout))
    assert back.model.clone(dtype=None) == model
    same_bits(back.params, params)


def test_unit_gates_are_the_same_function() -> None:
    unit, plain = MODELS["dih"], MODELS["dih"].clone(unit_gates=False)
    params = parameters(unit)
    other = jax.tree.map(np.copy, params)
    other["blocks"]["modulation"]["bias"][:, [2, 5]] += 1
    inputs = normal(2, 4, 4, 2), np.array([0.1, 0.9], np.float32), np.array([0, 3], np.int32)
    both = jax.jit(lambda p, q: (unit.apply({"params": p}, *inputs), plain.apply({"params": q}, *inputs)))
    np.testing.assert_allclose(*both(params, other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", ["", "_orig_mod."])
def test_averages_are_taken_out_of_wrapped_checkpoints_unless_the_others_are_asked_for(compiled: str) -> None:
    online, ema = theirs("dih", f"model.{compiled}"), theirs("dih", f"ema.ema_model.{compiled}", seed=1)
    more = {"ema.initted": np.array([True]), "ema.step": np.array([7]), "ema.online_model.freqs": normal(4)}
    tensors = online | ema | more
    found = interop.import_model(tensors, **told("dih"))
    assert found.weights == "ema"
    same_bits(interop.export_model(found.model, found.params), theirs("dih", seed=1))
    found = interop.import_model(tensors, weights="online", **told("dih"))
    same_bits(interop.export_model(found.model, found.params), theirs("dih"))
    with pytest.raises(InputError, match="weights = 'ema' are not in the file, which has online"):
        interop.import_model(online, weights="ema", **told("dih"))


@pytest.mark.parametrize("layout", ["dih", "homm_dit"])
def test_larger_latents_are_taken_for_the_branch_upscale(layout: str) -> None:
    large = told(layout) | {"image_size": 64}
    options: list[dict[str, Any]] = [{"upscale": False} | large, {"upscale": True} | told(layout)]
    made = [interop.import_model(theirs(layout), **each).model.positions for each in options]
    assert made == ["sincos", "sincos_phase"]
    found = interop.import_model(theirs(layout), **large)
    assert (found.model.positions, found.upscale) == ("sincos_phase", True)
    same_bits(interop.export_model(found.model, found.params), theirs(layout))


@pytest.mark.parametrize(
    ("layout", "told_too", "positions", "shift"),
    [
        ("dih", {"image_size": 64, "upscale": False}, "sincos", 1.0),
        ("dihpp", {"upscale": True}, "learned", resolution_shift(4)),
    ],
)
def test_a_workdir_has_the_times_of_its_branch(
    layout: str, told_too: dict[str, Any], positions: str, shift: float, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    interop.write_tensors(file, theirs(layout))
    options: dict[str, Any] = {"objective": "flow"} | told(layout) | told_too
    _, config = import_workdir(file, tmp_path / "run", common.base(), **options)
    assert (config.model.positions, config.diffusion.shift) == (positions, shift)


@pytest.mark.parametrize("layout", ["dit", "sit"])
def test_the_predicted_variances_are_left_out_when_asked(layout: str) -> None:
    tensors = theirs(layout)
    noise = {
        n: a.reshape(4, 1, 2, *a.shape[1:]) for n, a in tensors.items() if n.startswith("final_layer.linear")
    }
    both = {n: np.concatenate([a, a + 1], 1).reshape(16, *a.shape[3:]) for n, a in noise.items()}
    with pytest.raises(InputError, match=r"4 channels.*learn_sigma.*drop_variance"):
        interop.import_model(tensors | both, **told(layout))
    given = "  to be given: objective, num_heads"
    assert list(listing(tensors))[1] == given
    assert list(listing(tensors | both))[1].startswith(f"{given}, drop_variance (half of the output")
    found = interop.import_model(tensors | both, drop_variance=True, **told(layout))
    same_bits(interop.export_model(found.model, found.params), tensors)


def test_low_precision_is_read_and_presets_tell_what_shapes_cannot() -> None:
    half = {name: array.astype(np.float16) for name, array in theirs("dihpp").items()}
    found = interop.import_model(half, degree=1)
    assert (found.model.degree, found.model.expansion, found.model.n_timesteps) == (1, 4, 1000)
    same_bits(interop.export_model(found.model, found.params)["pos_emb"], half["pos_emb"].astype(np.float32))
    with pytest.raises(InputError, match=r"width = 384, says DiPoM-R-S/2, but .* DiH\+\+ have 8"):
        interop.import_model(half, preset="DiPoM-R-S/2")


@pytest.mark.parametrize(
    ("layout", "change", "options", "message"),
    [
        ("dih", {}, {"degree": None, "image_size": None}, "do not tell image_size and degree"),
        ("dih", {}, {"degree": 5}, "48 rows, not a multiple of 40"),
        ("dih", {}, {"num_heads": 2}, "num_heads = 2, says the caller, but .* 'none'"),
        ("dih", {}, {"objective": "sit"}, "the tensors are of HoMM's models"),
        ("dihpp", {}, {"image_size": 8}, "image_size = 8, says the caller, but .* have 4"),
        ("dit", {}, {"objective": None}, "DiT or SiT, which look alike"),
        ("dit", {}, {"upscale": True}, "upscale = True is of HoMM's models, and .*'s DiT: leave it out"),
        ("dit", {"pos_embed": normal(1, 4, 8)}, {}, "values of pos_embed: not as"),
        ("dih", {"freqs": normal(4)}, {}, "freqs .* are no frequencies"),
        ("dih", {"freqs": np.arange(4)}, {}, "dtype of freqs: int64"),
        ("dih", {"in_conv.weight": normal(8, 8)}, {}, r"shape of in_conv.weight: \[8, 8\], 4 axes"),
    ],
)
def test_what_the_tensors_do_not_tell_or_tell_otherwise(
    layout: str, change: Tensors, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        interop.import_model(theirs(layout) | change, **(told(layout) | options))


def test_all_keys_that_do_not_fit_are_listed() -> None:
    tensors = theirs("dih") | {"head.weight": normal(2, 3)}
    del tensors["layers.1.ffw.2.bias"]
    with pytest.raises(InputError) as error:
        interop.import_model(tensors, **told("dih"))
    lines = str(error.value).splitlines()
    assert lines == [
        "the tensors are not those of HoMM's DiH:",
        "  missing: layers.1.ffw.2.bias [8]",
        "  left over: head.weight [2, 3]",
    ]
    wrong = theirs("dih") | {"out_proj.bias": normal(3), "layers.1.cond_mlp.1.weight": normal(8, 8)}
    with pytest.raises(
        InputError, match=r"(?s)out_proj.bias: \[3\], but \[8\].*cond_mlp.1.weight: \[8, 8\], but \[32, 8\]"
    ):
        interop.import_model(wrong, **told("dih"))
    with pytest.raises(InputError, match="no model is among the 1 tensors"):
        interop.import_model({"weight": normal(2)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "power"}, "model.form = 'power' has no place in HoMM's DiH"),
        ({"mixer": "hybrid"}, "model.mixer = 'hybrid' has no place"),
        ({"positions": "dit"}, "model.positions = 'dit' has no place"),
        ({"clamp": 1.0}, "model.clamp = 1.0 has no place"),
        ({"depth": 3}, r"shape of blocks/.*: \[2, .*, but the model's is \[3"),
    ],
)
def test_models_that_the_authors_do_not_have_are_not_exported(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        interop.export_model(TINY.clone(**options), parameters(TINY))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of a SiT, and the workdir made of it."""
    folder = tmp_path_factory.mktemp("sit")
    file, out = folder / "sit.safetensors", folder / "run"
    interop.write_tensors(file, theirs("sit"))
    import_workdir(file, out, common.base(), **told("sit"))
    return file, out


def test_a_workdir_samples_trains_on_and_goes_back_to_the_same_file(imported: tuple[Path, Path]) -> None:
    file, out = imported
    generator = sampling.load(out)
    drawn = generator.sample_array([0, 2], steps=1, sampler="euler", guidance=1.0)
    assert drawn.shape == (2, 4, 4, 2)
    config = checkpoint.load_config(out)
    assert overrides(common.base(), config) != []
    config.data.update({"source": "synthetic", "batch_size": 8})
    run = make_run(config)
    found = checkpoint.restore_state(out, run.state)
    assert found is not None
    assert found[1] == 0
    same_bits(found[0].params, generator.params)
    back = file.with_name("back.safetensors")
    assert export_workdir(out, back) == 0
    assert back.read_bytes() == file.read_bytes()


def test_a_recipe_starts_from_an_import_as_the_same_network(tmp_path: Path) -> None:
    file, out = tmp_path / "model.safetensors", tmp_path / "run"
    interop.write_tensors(file, theirs("dih"))
    found, _ = import_workdir(file, out, common.base(), **{"objective": "flow"} | told("dih"))

    def start(**fields: Any) -> tuple[Any, Any, str]:
        config = common.base()
        config.model.update(found.fields | {"unit_gates": False} | fields)
        config.data.update({"source": "synthetic", "batch_size": 8})
        config.init_from = str(out)
        made = make_run(config)
        begun = find_start(made)
        return made.model.clone(dtype=None), begun.state(), "\n".join(begun.lines)

    model, state, said = start()
    assert "model.unit_gates: True there, False now, whose biases are raised by 1" in said
    assert "warning: model" not in said
    inputs = normal(2, 4, 4, 2), np.array([0.1, 0.9], np.float32), np.array([0, 3], np.int32)
    expected = found.model.apply({"params": found.params}, *inputs)
    for params in (state.params, *state.ema):
        np.testing.assert_allclose(model.apply({"params": params}, *inputs), expected, rtol=1e-5, atol=1e-5)
    assert "warning: model.clamp" in start(clamp=3.0)[2]
    for fields, flags in (
        ({"n_timesteps": 10}, f"n_timesteps={found.model.n_timesteps}"),
        ({"activation": "gelu_tanh"}, "activation=gelu"),
    ):
        with pytest.raises(InputError, match=f"another network here .*: give --config.model.{flags}$"):
            start(**fields)


def test_a_folder_with_files_is_not_overwritten(imported: tuple[Path, Path]) -> None:
    file, out = imported
    with pytest.raises(InputError, match="is there and not empty; choose another --out"):
        import_workdir(file, out, common.base(), **told("sit"))
    with pytest.raises(InputError, match="objective = None is unknown"):
        import_workdir(file, out / "new", common.base(), objective=None)
    with pytest.raises(InputError, match=r"ends in '\.pt', not in \.safetensors"):
        export_workdir(out, file.with_suffix(".pt"))
    assert not (out / "new").exists()


def test_an_import_that_fails_is_no_workdir(tmp_path: Path, imported: tuple[Path, Path]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, limits[1]))  # enough for the configuration
    try:
        with pytest.raises(InputError, match="could not be written"):
            import_workdir(imported[0], tmp_path / "run", common.base(), **told("sit"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(InputError, match="is not a workdir"):
        checkpoint.load_config(tmp_path / "run")


def test_a_file_is_listed_with_what_has_to_be_given() -> None:
    lines = list(listing(theirs("dih", "ema.") | theirs("dih", "model.")))
    assert lines[0].startswith("ema: HoMM's DiH: ")
    assert "width 8, depth 2, patch_size 2, channels 2, num_classes 3" in lines[0]
    assert lines[1] == "  to be given: objective, image_size, degree"
    assert lines[2].startswith("online: ")
    assert "  model.freqs [4] float32" in lines
    broken = [line for line in listing({"in_conv.weight": normal(2, 2)}) if "missing" in line]
    assert "  missing: out_proj.weight" in broken
    assert next(listing({"a.po_coeff": normal(2, 2)})) == "no model, 1 layers of PoM: 'a'"
    odd = list(listing(theirs("dihpp") | {"pos_emb": normal(1, 5, 8)}))
    assert odd[0].endswith("but pos_emb [1, 5, 8] is no table of a square of patches")
    assert "  pos_emb [1, 5, 8] float32" in odd


def test_the_command_imports(tmp_path: Path) -> None:
    file, out = tmp_path / "model.safetensors", tmp_path / "run"
    interop.write_tensors(file, theirs("dih"))
    words = ["import", "~/model.safetensors", "--out=~/run", "--objective=flow", "--degree=3"]
    words.append("--image_size=64")
    done = subprocess.run(
        [sys.executable, "-m", "pom_jax.interop", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "dih (online), 2 layers of width 8, 3 classes, 64 x 64 x 2" in done.stdout
    assert (
        "their branch upscale (model.positions=sincos_phase, diffusion.shift=1.414, sampling.guidance=9); "
        "--noupscale if" in done.stdout
    )
    config = checkpoint.load_config(out)
    assert (config.model.positions, config.diffusion.shift) == ("sincos_phase", 2**0.5)
    assert config.sampling.guidance == 9.0
    # What no tensor tells stays as in the recipe, so that its command goes on with the run.
    assert (config.name, config.model.num_heads) == ("model", common.base().model.num_heads)
