"""The lean twin: values and gradients of the naive one, under every option and transformation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from hypothesis import example, given
from hypothesis import strategies as st
from jax import Array
from jax.sharding import AbstractMesh, AxisType, NamedSharding, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from pom_jax.errors import InputError
from pom_jax.nn import LocalAttention, Phase, PoM, Rotary
from pom_jax.ops import runs
from tests.layers import WIDTH, assert_close, few, gap, normal, parameters, position_axes, quick_jit, uniform

PHASE = Phase(((np.inf, 4.0, -3.0),))
LAYERS: dict[str, Any] = {
    "product": PoM(),
    "power": PoM(form="power", gate_heads=4, use_bias=True),
    "groups": PoM(form="power", groups=2, feature_scale=True),
    "rotary": PoM(form="power", rotary=Rotary(2)),
    "phase": PoM(form="power", phase=PHASE),
    "reads": PoM(reads=("own", "last", "past")),
    "all_of_it": PoM(form="power", reads=("last", "all"), rotary=Rotary(), phase=PHASE, count="frames"),
}
RAGGED = {"frames": (3, 1, 5, 2)}
MODES: dict[str, dict[str, Any]] = {
    "global": {},
    "causal": {"causal": True},
    "frames": {"frames": 6},
    "ragged": RAGGED,
    "cross": {"context": 13},
    "cross_causal": {"context": 11, "causal": True},
    "cross_frames": {"context": 13, **RAGGED, "context_frames": (2, 4, 1, 6)},
}
CASES = [
    ("product", "global", ""),
    ("product", "cross_causal", "mask state"),
    ("product", "cross_frames", "mask"),
    ("power", "cross", "mask state"),
    ("power", "causal", ""),
    ("groups", "ragged", "mask"),
    ("rotary", "frames", "state"),
    ("rotary", "cross_causal", "mask"),
    ("phase", "causal", "state"),
    ("phase", "ragged", ""),
    ("reads", "ragged", "mask state"),
    ("all_of_it", "ragged", "mask state"),
    ("all_of_it", "causal", "state"),
]


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows a run, so that a handful of tokens makes several runs, the last ones padded."""
    monkeypatch.setattr(runs, "CPU_ROWS", 8)
    monkeypatch.setattr(runs, "LEAST_TOKENS", 3)


def value_and_slopes(layer: Any, options: dict[str, Any], inputs: dict[str, Any]) -> Any:
    """Outputs, the state after them, and gradients with respect to everything that floats."""

    def outputs(inputs: Any) -> Any:
        given = dict(inputs)
        return layer.apply(given.pop("p"), given.pop("x"), **given, **options)

    y, slope = jax.vjp(outputs, inputs)
    weigh = [
        jnp.asarray(normal(50 + i, *leaf.shape), leaf.dtype) for i, leaf in enumerate(jax.tree.leaves(y))
    ]
    return y, slope(jax.tree.unflatten(jax.tree.structure(y), weigh))[0]


def drawn(
    layer: Any, mode: dict[str, Any], extra: str, tokens: int = 11
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Static options of a call, and its arrays."""
    options = dict(mode)
    others = options.pop("context", None)
    tokens = 12 if options.get("frames") == 6 else tokens
    axes = position_axes(layer)
    inputs: dict[str, Any] = {"p": parameters(layer), "x": normal(1, 2, tokens, WIDTH)}
    if others is not None:
        inputs["context"] = normal(2, 2, others, WIDTH)
    seen = tokens if others is None else others
    if "mask" in extra:
        inputs["mask"] = uniform(3, 2, seen) * (uniform(4, 2, seen) > 0.3)
    if "state" in extra:
        state, tree = jax.tree.flatten(layer.init_state(2, WIDTH))
        inputs["state"] = jax.tree.unflatten(
            tree, [1 + uniform(5 + i, *s.shape) for i, s in enumerate(state)]
        )
    if axes:
        inputs["positions"] = 3 * normal(7, tokens, axes)
        if others is not None:
            inputs["context_positions"] = 3 * normal(8, 2, others, axes)
    return options, inputs


@pytest.mark.parametrize(
    ("name", "mode", "extra"), [pytest.param(*CASES[0], marks=pytest.mark.smoke), *CASES[1:]]
)
def test_lean_is_naive_in_value_and_every_gradient(
    short_runs: None, name: str, mode: str, extra: str
) -> None:
    layer = LAYERS[name]
    options, inputs = drawn(layer, MODES[mode], extra)

    @quick_jit
    def both(inputs: Any) -> Any:
        return [value_and_slopes(layer.clone(implementation=m), options, inputs) for m in ("lean", "naive")]

    lean, naive = both(inputs)
    assert_close(lean, naive, 5e-6, least=1e-3)
    # Positions alone have none.
    still = {k for k, v in naive[1].items() if not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(v))}
    assert still == {k for k in inputs if k.endswith("positions")}


@pytest.mark.parametrize(("causal", "masked"), [(False, True), (True, False)])
def test_lean_is_naive_with_runs_of_full_size(causal: bool, masked: bool) -> None:
    layer: Any = PoM(expansion=1)
    tokens = 2 * runs.CPU_ROWS + 77
    options, inputs = drawn(layer, {"causal": causal}, "mask" if masked else "", tokens)
    assert runs.plan_runs(2, 1, tokens).count > 2

    @quick_jit
    def both(inputs: Any) -> Any:
        return [value_and_slopes(layer.clone(implementation=m), options, inputs) for m in ("lean", "naive")]

    lean, naive = both(inputs)
    assert_close(lean, naive, 2e-5)


@few
@given(
    batch=st.integers(1, 3),
    frames=st.integers(1, 9),
    tokens=st.integers(1, 9),
    rows=st.integers(1, 40),
    least=st.integers(1, 4),
)
@example(batch=1, frames=3, tokens=7, rows=4, least=1)  # parts of frames
@example(batch=2, frames=7, tokens=2, rows=9, least=1)  # several frames a run
@example(batch=1, frames=7, tokens=11, rows=3, least=1)  # padded
def test_runs_hold_each_token_once(batch: int, frames: int, tokens: int, rows: int, least: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "CPU_ROWS", rows)
        patch.setattr(runs, "LEAST_TOKENS", least)
        plan = runs.plan_runs(batch, frames, tokens)
        with use_abstract_mesh(AbstractMesh((2, 2), ("data", "fsdp"))):
            assert runs.plan_runs(4 * batch, frames, tokens) == plan, "a device holds a quarter of the batch"
    assert batch * plan.run_frames * plan.run_tokens <= max(rows, batch * least)
    assert plan.count > 1 or frames * tokens < 2 * least, "too few tokens for two runs"
    x = np.arange(1, batch * frames * tokens + 1, dtype=np.float32).reshape(batch, frames, tokens)

    @quick_jit
    def outputs(x: Array) -> Any:
        padded, numbers = plan.pad(x), jnp.arange(plan.count)
        cut = jax.vmap(lambda run: plan.at(padded, run))(numbers)

        def put(room: Array, run: Array) -> tuple[Array, None]:
            return plan.put(room, run, cut[run]), None

        joined = plan.trim(jax.lax.scan(put, jnp.zeros_like(padded), numbers)[0])
        of_runs = jax.vmap(lambda number: plan.of_run(plan.group(x[:, :, 0]), number))(numbers)
        return cut, joined, plan.total(cut.sum(-1)), of_runs

    cut, joined, totals, of_runs = outputs(x)
    np.testing.assert_array_equal(joined, x)
    np.testing.assert_array_equal(totals, x.sum(-1))
    assert sorted(cut[np.asarray(cut) > 0].tolist()) == list(range(1, x.size + 1))
    numbers = np.nonzero(np.asarray(cut))
    first = np.asarray(of_runs)[numbers[0], numbers[1], numbers[2]]
    np.testing.assert_array_equal(first, (cut[numbers] - 1) // tokens * tokens + 1)


def primitives(function: Any, *arguments: Any) -> str:
    return str(jax.make_jaxpr(function)(*arguments))


def test_auto_is_lean_where_features_are_large_and_tokens_whole() -> None:
    """64 MiB of float32 features on CPU; a mesh that splits the tokens has no place for a loop along them."""
    layer: Any = PoM()
    p = parameters(layer)
    per_token = 4 * 2 * 2 * WIDTH

    def apply(x: Array) -> Any:
        return layer.apply(p, x)

    def tokens(count: int) -> Any:
        return jax.ShapeDtypeStruct((1, count, WIDTH), jnp.float32)

    large = tokens(2**26 // per_token)
    assert "scan" in primitives(apply, large)
    assert "scan" not in primitives(apply, tokens(2**26 // per_token - 1))
    for axes, lean in (({"data": 2, "context": 1}, True), ({"data": 1, "context": 2}, False)):
        mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
        with jax.sharding.use_abstract_mesh(mesh):
            assert ("scan" in primitives(apply, large)) is lean
    for method, lean in (("lean", True), ("naive", False)):
        some = layer.clone(implementation=method)
        assert ("scan" in primitives(lambda x, some=some: some.apply(p, x), tokens(6))) is lean
        assert ("scan" in primitives(lambda x, some=some: some.apply(p, x), large)) is lean


class Block(linen.Module):
    """A residual layer as a scanned stack has it."""

    layer: Any

    @linen.compact
    def __call__(self, x: Array, _: None) -> tuple[Array, None]:
        return x + self.layer(x, causal=True), None


@pytest.mark.parametrize("remat", [False, True])
def test_lean_in_a_scanned_stack_with_and_without_remat(short_runs: None, remat: bool) -> None:
    x = normal(1, 2, 11, WIDTH)

    def stack(method: str) -> Any:
        block = linen.remat(Block) if remat else Block
        scanned = linen.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return scanned(PoM(form="power", implementation=method))

    shapes = jax.eval_shape(lambda x: stack("naive").init(jax.random.key(0), x, None), x)
    leaves, tree = jax.tree.flatten(shapes)
    p = jax.tree.unflatten(tree, [0.3 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])

    @quick_jit
    def both(p: Any, x: Array) -> Any:
        def loss(method: str) -> Any:
            return lambda p, x: (stack(method).apply(p, x, None)[0] ** 2).sum()

        return [jax.value_and_grad(loss(method), (0, 1))(p, x) for method in ("lean", "naive")]

    lean, naive = both(p, x)
    assert_close(lean, naive, 1e-5)


def test_lean_under_vmap_gives_each_example_its_gradient(short_runs: None) -> None:
    layer: Any = PoM()
    p, x = parameters(layer), normal(1, 3, 1, 11, WIDTH)

    @quick_jit
    def both(p: Any, x: Array) -> Any:
        def slopes(method: str) -> Any:
            layer_ = layer.clone(implementation=method)
            return jax.grad(lambda p, x: (layer_.apply(p, x, frames=RAGGED["frames"]) ** 2).sum(), (0, 1))

        return [jax.vmap(slopes(method), (None, 0))(p, x) for method in ("lean", "naive")]

    lean, naive = both(p, x)
    assert_close(lean, naive, 5e-6)


@pytest.mark.parametrize("options", [{"causal": True}, RAGGED], ids=["causal", "frames"])
def test_bfloat16_twins_stay_together(short_runs: None, options: dict[str, Any]) -> None:
    """Gradients of the weights are summed over runs in float32, and come back in the weights' dtype."""
    layer: Any = PoM(dtype=jnp.bfloat16)
    _, inputs = drawn(layer, options, "mask")

    @quick_jit
    def both(inputs: Any) -> Any:
        return [value_and_slopes(layer.clone(implementation=m), options, inputs) for m in ("lean", "naive")]

    lean, naive = both(inputs)
    assert lean[0].dtype == naive[0].dtype == jnp.bfloat16
    for one, other in zip(jax.tree.leaves(lean), jax.tree.leaves(naive), strict=True):
        assert one.dtype == other.dtype
        assert gap(one, other) < 0.02


@pytest.mark.parametrize("options", [{}, {"frames": 4}, {"frames": (5, 7)}, {"causal": True}], ids=str)
def test_lean_under_shard_map_has_the_gradients_of_naive(short_runs: None, options: dict[str, Any]) -> None:
    """There the loops must say from the start which arrays differ from device to device."""
    x, mask = normal(1, 2, 12, WIDTH), uniform(2, 2, 12)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    naive, lean = (PoM(implementation=name) for name in ("naive", "lean"))
    p = parameters(naive)

    def slopes(layer: Any, p: Any, x: Array, mask: Array) -> Any:
        def losses(p: Any, x: Array, mask: Array) -> Array:
            return (layer.apply(p, x, mask=mask, **options) ** 2).sum((1, 2))

        split = jax.shard_map(losses, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P("data"))
        return jax.grad(lambda *a: split(*a).sum(), (0, 1, 2))(p, x, mask)

    found = quick_jit(lambda p, x, m: (slopes(lean, p, x, m), slopes(naive, p, x, m)))(p, x, mask)
    assert_close(*found)


def test_a_mesh_with_explicit_axes_is_served_naively_or_refused_in_words() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    x = normal(1, 2, 12, WIDTH)
    split = jax.device_put(x, NamedSharding(mesh, P("data")))
    layer: Any = PoM()
    attention = LocalAttention(2, (12,), 2)
    modes: list[dict[str, Any]] = [{}, {"frames": 4}, {"causal": True}]
    p, q = parameters(layer), attention.init(jax.random.key(0), x)

    def outputs(p: Any, q: Any, x: Array) -> Any:
        found = [layer.apply(p, x, **options) for options in modes]
        return found, attention.apply(q, x)

    def slopes(p: Any, q: Any, x: Array) -> Any:
        return jax.grad(lambda *a: sum((y**2).sum() for y in jax.tree.leaves(outputs(*a))), (0, 1, 2))(
            p, q, x
        )

    whole = jax.device_put((p, q), NamedSharding(mesh, P()))
    for run in (outputs, slopes):
        assert_close(quick_jit(run)(*whole, split), quick_jit(run)(p, q, x), least=1)  # a key's bias has none
    for refused, frames in ((layer, (5, 7)), (layer.clone(implementation="lean"), None)):
        with pytest.raises(InputError, match=r"Explicit axes do not allow: make the mesh with"):
            refused.apply(whole[0], split, frames=frames)
