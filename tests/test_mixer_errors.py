"""What cannot be mixed is refused in words, with both numbers, before anything compiles.

Calls are traced with `jax.eval_shape`, which neither compiles nor computes.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array, export

from pom_jax.errors import InputError
from pom_jax.nn import FrameStates, Phase, PoM, Rotary, State
from pom_jax.ops import grid_positions, merge_states, prefix_sum, state_mean, token_state
from tests.layers import WIDTH, normal, parameters

B, N = 2, 6
fuzz = settings(max_examples=30, deadline=None)
X = jax.ShapeDtypeStruct((B, N, WIDTH), jnp.float32)


def shapes(layer: Any, x: Any = X, *arguments: Any, **options: Any) -> Any:
    """Shapes of what a call returns, or the error that it raises."""

    def call(x: Array) -> Any:
        return layer.init_with_output(jax.random.key(0), x, *arguments, **options)[0]

    return jax.eval_shape(call, x)


def check(layer: Any, x: Any = X, *arguments: Any, **options: Any) -> str | None:
    """None for a call that works, with an output like x, and the message of the error otherwise."""
    try:
        found = shapes(layer, x, *arguments, **options)
    except InputError as error:
        return str(error)
    y = found[0] if options.get("state") is not None else found
    assert y.shape == x.shape
    return None


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-1, 5), max_size=3),
    st.dictionaries(st.text(max_size=1), st.integers(), max_size=1),
    st.sampled_from(
        [b"ab", 2j, np.int64(2), np.float32(0.5), np.ones((B, N)), np.ones(2, "U1"), math.inf, len]
    ),
)
FIELDS = [
    field.name for field in dataclasses.fields(PoM) if field.name not in ("parent", "name", "kernel_init")
]
ARGUMENTS = [name for name in inspect.signature(PoM.__call__).parameters if name not in ("self", "x")]


@fuzz
@given(
    form=st.sampled_from(["product", "power"]),
    field=st.sampled_from(FIELDS),
    value=odd,
)
def test_no_field_makes_anything_else_than_an_input_error(form: str, field: str, value: Any) -> None:
    fields: dict[str, Any] = {"form": form} | {field: value}
    check(PoM(**fields))


NONE: Any = None
STATE: Any = PoM().init_state(B, WIDTH)
MORE: Any = PoM(degree=3).init_state(B, WIDTH)
ONES: Any = np.ones((B, N, WIDTH), np.float32)
fitting = st.sampled_from(
    [True, 1, 2, N, (2, 4), (1,) * N, STATE, FrameStates(STATE, STATE), np.arange(N), np.ones((N, 1))]
    + [np.ones(shape) for shape in ((B, N), (1, N), (B, N, N), (B, 1, 1, N), (B, N, WIDTH))]
)
layers = st.builds(
    PoM,
    reads=st.sampled_from([("all",), ("own", "last")]),
    rotary=st.sampled_from([None, Rotary()]),
    phase=st.sampled_from([None, Phase(((3.0,),))]),
    implementation=st.sampled_from(["naive", "lean"]),
    count=st.sampled_from(["tokens", "frames"]),
)


@fuzz
@given(layers, st.dictionaries(st.sampled_from(ARGUMENTS), fitting | odd, max_size=3))
def test_no_arguments_make_anything_else_than_an_input_error(layer: PoM, arguments: dict[str, Any]) -> None:
    check(layer, **arguments)


axis = st.integers(0, 4)
shape = st.lists(axis, max_size=5).map(tuple)


@fuzz
@given(
    shape=shape,
    dtype=st.sampled_from([jnp.int8, jnp.bfloat16, jnp.bool_, jnp.complex64]),
    causal=st.booleans(),
)
def test_tokens_of_any_shape_work_or_are_told(shape: tuple[int, ...], dtype: Any, causal: bool) -> None:
    message = check(PoM(), jax.ShapeDtypeStruct(shape, dtype), causal=causal)
    if dtype == jnp.complex64:
        assert message is not None
        assert "complex64" in message
    elif len(shape) != 3:
        assert message == f"x has shape {shape}; tokens are [batch, tokens, width]"
    else:
        assert (message is None) is (shape[2] > 0)


@fuzz
@given(batch=axis, tokens=axis, width=st.sampled_from([WIDTH, WIDTH + 1]))
def test_a_context_fits_or_both_shapes_are_named(batch: int, tokens: int, width: int) -> None:
    message = check(PoM(), X, np.zeros((batch, tokens, width)))
    if (batch, width) == (B, WIDTH):
        assert message is None
    else:
        assert message is not None
        assert f"x has shape {(B, N, WIDTH)} and context {(batch, tokens, width)}" in message


@fuzz
@given(shape=st.one_of(shape, st.tuples(axis, axis, st.just(N)), st.tuples(axis, axis, axis, st.just(N))))
def test_a_mask_fits_or_is_named_with_what_would(shape: tuple[int, ...]) -> None:
    context = np.zeros((B, N, WIDTH))
    message = check(PoM(), X, context, mask=np.ones(shape))
    heads = shape[1:2] if len(shape) == 4 else (1,)
    rest = shape if len(shape) < 4 else (shape[0], *shape[2:])
    fits = rest[-1:] == (N,) and rest[0] in (1, B) and heads == (1,)
    fits &= len(rest) == 2 or (len(rest) == 3 and (rest[1] == N or (len(shape) == 4 and rest[1] == 1)))
    assert (message is None) is fits
    if message is not None:
        assert f"{heads[0]} heads" in message if heads != (1,) else f"({B}, {N})" in message


lengths = st.one_of(st.integers(-1, 7), st.lists(st.integers(0, 5), max_size=4).map(tuple))


@fuzz
@given(tokens=st.integers(0, 7), frames=lengths)
def test_lengths_of_frames_add_up_or_both_numbers_are_named(tokens: int, frames: Any) -> None:
    message = check(PoM(), jax.ShapeDtypeStruct((B, tokens, WIDTH), jnp.float32), frames=frames)
    if isinstance(frames, int):
        fits, named = frames > 0 and tokens % frames == 0, [f"{frames} does not divide the {tokens} tokens"]
    else:
        fits = sum(frames) == tokens and 0 not in frames
        named = [f"add up to {sum(frames)} tokens, but there are {tokens}", "0 in"]
    assert (message is None) is fits
    assert message is None or any(part in message for part in named)


@fuzz
@given(own=st.lists(st.integers(1, 3), max_size=4), others=st.lists(st.integers(1, 3), max_size=4))
def test_frames_of_queries_and_context_are_as_many(own: list[int], others: list[int]) -> None:
    x = jax.ShapeDtypeStruct((B, sum(own), WIDTH), jnp.float32)
    context = np.zeros((B, sum(others), WIDTH))
    message = check(PoM(), x, context, frames=tuple(own), context_frames=tuple(others))
    assert (message is None) is (len(own) == len(others))
    assert (
        message is None or f"are {len(own)} and context_frames {tuple(others)} are {len(others)}" in message
    )


@fuzz
@given(axes=st.integers(1, 3), shape=shape)
def test_positions_have_a_row_for_each_token(axes: int, shape: tuple[int, ...]) -> None:
    layer = PoM(phase=Phase(((math.inf, 3.0),) * axes))
    x = jax.ShapeDtypeStruct((B, 3, WIDTH), jnp.float32)
    message = check(layer, x, positions=np.zeros(shape))
    fits = shape in ((3, axes), (1, 3, axes), (B, 3, axes)) or (axes == 1 and shape in ((3,), (1, 3), (B, 3)))
    assert (message is None) is fits
    assert message is None or f"3 tokens on {axes} axes need [3, {axes}]" in message


@fuzz
@given(
    reads=st.sampled_from([("all",), ("own", "last")]),
    form=st.sampled_from(["product", "power"]),
    of=st.fixed_dictionaries(
        {"reads": st.sampled_from([("all",), ("last",)]), "degree": st.integers(1, 3)},
        optional={"phase": st.just(Phase(((2.0,),))), "form": st.just("power")},
    ),
    batch=st.integers(1, 3),
)
def test_a_state_is_of_the_same_kind_of_layer_and_batch(
    reads: tuple[str, ...], form: str, of: dict[str, Any], batch: int
) -> None:
    layer, other = PoM(form=form, reads=reads), PoM(**of)
    state, own = other.init_state(batch, WIDTH), layer.init_state(B, WIDTH)
    message = check(layer, state=state)
    alike = jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, own) and type(state) is type(own)
    assert (message is None) is alike
    if message is not None and type(state) is type(own):
        sums = [(one.total if isinstance(one, FrameStates) else one).sum.shape for one in (state, own)]
        assert all(str(one) in message for one in sums)


@fuzz
@given(
    layer=st.fixed_dictionaries(
        {"form": st.just("power"), "gate_heads": st.integers(0, 9), "groups": st.integers(1, 5)},
        optional={"rotary": st.builds(Rotary, st.integers(0, 4)), "expansion": st.integers(1, 3)},
    ),
    width=st.integers(1, 12),
)
def test_sizes_divide_or_both_are_named(layer: dict[str, Any], width: int) -> None:
    axes = layer["rotary"].axes if "rotary" in layer else 1
    expanded, heads, turns = layer.get("expansion", 2) * width, layer["gate_heads"], 2 * axes
    places = {"positions": np.zeros((3, axes))} if "rotary" in layer else {}
    message = check(PoM(**layer), jax.ShapeDtypeStruct((B, 3, width), jnp.float32), **places)
    wrong = []
    if width % layer["groups"]:
        wrong += [f"groups = {layer['groups']} does not divide the width D = {width}"]
    if heads > 1 and expanded % heads:
        wrong += [f"gate_heads = {heads} does not divide the expanded width"]
    if "rotary" in layer:
        wrong += [f"axes={axes}"] if axes not in (1, 2, 3) else []
        wrong += [f"E = {expanded} must be a multiple of {turns}"] if turns and expanded % turns else []
        narrow = heads > 1 and turns and (heads % turns or expanded // heads < 2)
        wrong += [f"gate_heads = {heads} must be a multiple of {turns}"] if narrow else []
    if message is None:
        assert not wrong or (expanded // max(heads, 1) == 1 and axes > 1)
    else:
        assert any(part in message for part in wrong)


MISTAKES: list[tuple[PoM, dict[str, Any], str]] = [
    (PoM(), {"values": normal(0, B, N, WIDTH)}, "no values beside the keys"),
    (PoM(), {"mask": [[1] * N] * B}, "mask is a list"),
    (PoM(), {"mask": "causal"}, "mask is a str"),
    (PoM(), {"mask": np.ones((B, N), complex)}, "mask has dtype complex128"),
    (PoM(), {"causal": True, "frames": 2}, "causal=True .* frames whole frames"),
    (PoM(), {"causal": 1}, "causal = 1 must be True or False"),
    (PoM(), {"causal": True, "context": normal(0, B, 4, WIDTH)}, "there are 6 queries and 4 context tokens"),
    (PoM(), {"context_frames": 2}, "context_frames = 2 needs frames"),
    (PoM(), {"frames": "22"}, "frames = '22' must be the length"),
    (PoM(), {"frames": True}, "frames = True must be the length"),
    (PoM(), {"frames": (2, 4.0)}, r"4.0 in \(2, 4.0\)"),
    (PoM(), {"mask": np.ones((B, N, N)), "causal": True}, "goes without causal=True"),
    (PoM(), {"mask": np.ones((B, N, N)), "frames": 2}, "goes without frames="),
    (PoM(), {"mask": np.ones((B, N, N)), "state": STATE}, "goes without state="),
    (PoM(implementation="lean"), {"mask": np.ones((B, N, N))}, "goes without implementation='lean'"),
    (PoM(reads=("own",)), {"mask": np.ones((B, N, N))}, r"goes without reads=\('own',\)"),
    (PoM(), {"mask": np.ones((B, N, N)), "drafts": 1}, "goes without drafts="),
    (PoM(), {"drafts": 1}, r"drafts = 1 with no frames: give frames="),
    (PoM(), {"drafts": 1, "causal": True}, r"drafts = 1 with no frames"),
    (PoM(), {"drafts": 1, "frames": 2}, r"drafts = 1 with 3 frames: .* a multiple of 1 \+ drafts"),
    (PoM(), {"positions": np.arange(N)}, "neither rotary nor phase"),
    (
        PoM(rotary=Rotary()),
        {"positions": np.arange(N), "context": normal(0, B, N, WIDTH)},
        "context_positions are needed: positions, given or",
    ),
    (PoM(rotary=Rotary(2)), {}, r"positions \[6, 2\] are needed; 2 axes have no default"),
    (PoM(rotary=Rotary()), {"state": STATE}, "a stream does not know where its tokens are"),
    (PoM(rotary=Rotary()), {"positions": ["a"] * N}, "positions must be numbers"),
    (PoM(), {"state": tuple(STATE)}, "state is a tuple, but .* carries a State"),
    (PoM(), {"state": State(STATE.sum, NONE)}, "the count of the state is a NoneType"),
    (PoM(), {"state": State(STATE.sum.astype(complex), STATE.count)}, "dtype complex64"),
    (PoM(reads=("last",)), {"state": STATE}, "state is a State, but .* carries a FrameStates"),
    (PoM(reads=("last",)), {"state": FrameStates(STATE, NONE)}, "holds a NoneType"),
    (PoM(phase=Phase(cast(Any, (4.0,)))), {}, "a tuple of periods for each axis"),
    (PoM(phase=Phase(((4.0, 0.0),))), {}, "a number other than zero"),
    (PoM(rotary=Rotary(4)), {}, "axes is 1, 2 or 3"),
    (PoM(rotary=Rotary(True)), {}, r"Rotary\(axes=True\): axes is 1, 2 or 3"),
    (PoM(rotary=Rotary(base=math.inf)), {}, r"Rotary\(base=inf\): base is a number above 0"),
    (PoM(degree=True), {}, "degree = True must be a whole number of at least 1"),
    (PoM(global_tokens=-1), {}, "global_tokens = -1 must be a whole number of at least 0"),
    (PoM(grid=cast(Any, 6)), {}, "grid = 6 must be a tuple of the sizes of its axes"),
    (PoM(form="power", slope=math.nan), {}, "slope = nan must be a finite number"),
    (PoM(grid=(2, 3), rotary=Rotary(2)), {"context": normal(0, B, N, WIDTH)}, "or of the layer's grid"),
    (PoM(grid=(10**6, 10**6), rotary=Rotary(2)), {}, "gives 1000000000000 \\+ 0 tokens positions"),
    (PoM(degree=10**12), {}, "degree = 1000000000000 is above 64"),
    (PoM(form="power", slope=10**400), {}, "must be a finite number"),
    (PoM(expansion=10**30), {}, f"expansion = {10**30} is above 2147483647"),
    (PoM(expansion=2**30), {}, r"E = expansion \* width = 8589934592 is above"),
    (PoM(causal=cast(Any, "no")), {}, "causal = 'no' must be True or False"),
    (PoM(kernel_init=cast(Any, None)), {}, "kernel_init = None must be an initialiser"),
    (PoM(), {"mask": np.full((B, N), -(10**9))}, "mask has the weight -1000000000.0"),
    (PoM(), {"mask": np.full((B, N), np.inf)}, "mask has the weight inf"),
    (PoM(), {"frames": (1,) * 100}, r"frames \(1, 1, .* 1, ...\) add up to 100 tokens, but there are 6"),
    (PoM(), {"frames": (np.uint8(131),) * 2}, "add up to 262 tokens"),
    (PoM(), {"sow_weights": True}, "PoM has no attention weights to sow"),
    (PoM(dtype="int32"), {}, "dtype = int32 has no fractions"),
    (PoM(reads=cast(Any, ({"a"},))), {}, r"reads = .* must be a tuple of some of all"),
    (PoM(rotary=Rotary()), {"positions": [10**400] * N}, "positions must be numbers"),
    (PoM(rotary=Rotary()), {"positions": [1j] * N}, "positions must be numbers .* complex"),
    (PoM(phase=Phase(((10**400,),))), {}, "a number other than zero that float32 holds"),
    (PoM(phase=Phase(((1e-50,),))), {}, "a number other than zero that float32 holds"),
    (PoM(rotary=Rotary(base=10**400)), {}, "base is a number above 0, from 1e-37 to 3e38"),
    (PoM(rotary=Rotary(base=1e-300)), {}, "base is a number above 0, from 1e-37 to 3e38"),
    (PoM(form="power", clamp=(0, 10**400)), {}, "more than float32 holds; say math.inf"),
    (PoM(kernel_init=lambda *_: jnp.zeros(3)), {}, r"of shape \(3,\) where \(8, 32\) is asked"),
    (PoM(), {"mask": np.ones((B, N, N)), "context_frames": 2}, "goes without context_frames="),
]


@pytest.mark.parametrize(("layer", "arguments", "message"), MISTAKES)
def test_each_mistake_has_words_of_its_own(layer: PoM, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shapes(layer, **arguments)


def test_states_that_cannot_be_made_read_or_merged() -> None:
    layer: Any = PoM()
    for batch in (-1, "a", 2.5, None):
        with pytest.raises(InputError, match=r"batch = .* must be a whole number"):
            layer.init_state(batch, WIDTH)
    for width in (0, "a", 2.5):
        with pytest.raises(InputError, match=r"width = .* must be a whole number of at least 1"):
            layer.init_state(B, width)
    with pytest.raises(InputError, match="needs width="):
        layer.init_state(B)
    assert layer.bind(parameters(layer)).init_state(B).sum.shape == (B, 1, 2, 2 * WIDTH)
    for wrong in ([1.0], None, "x", 1.0):
        for method, rest in (("write", ()), ("read", (STATE,))):
            with pytest.raises(InputError, match=r"is a (list|NoneType|str|float); give an array"):
                layer.init_with_output(jax.random.key(0), wrong, *rest, method=method)
    with pytest.raises(InputError, match="read needs the state that others left"):
        layer.init_with_output(jax.random.key(0), STATE.sum[:, 0], None, method="read")
    own = PoM(reads=("own",))
    with pytest.raises(InputError, match="read takes no state of its own"):
        own.apply(parameters(own), jnp.zeros((B, N, WIDTH)), own.init_state(B, WIDTH), method="read")
    both: Any = (STATE, FrameStates(STATE, STATE))
    with pytest.raises(InputError, match="a State and a FrameStates"):
        merge_states(*both)
    with pytest.raises(InputError, match=r"\(2, 1, 2, 16\) and \(3, 1, 2, 16\) do not add"):
        merge_states(STATE, layer.init_state(3, WIDTH))
    number: Any = 1
    with pytest.raises(InputError, match="a part of a state is a int"):
        merge_states(State(number, number), State(number, number))
    features: Any = "a"
    with pytest.raises(InputError, match="features is a str"):
        token_state(features)
    with pytest.raises(InputError, match=r"features have shape \(2,\)"):
        token_state(jnp.ones(2))


def test_whole_numbers_beyond_int32_are_slopes_and_bounds() -> None:
    assert check(PoM(form="power", slope=10**30, clamp=(-(10**30), 10**30))) is None


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "mask": (lambda: token_state(ONES, cast(Any, [[1] * N] * B)), "mask is a list; give an array"),
    "sum": (lambda: STATE + FrameStates(STATE, STATE), "a State and a FrameStates are of mixers with other"),
    "sum back": (lambda: FrameStates(STATE, STATE) + STATE, "a FrameStates and a State are of mixers"),
    "last": (
        lambda: FrameStates(STATE, STATE) + FrameStates(STATE, MORE),
        r"\(2, 1, 2, 16\) and \(2, 1, 3, 16\) do not add",
    ),
    "total": (
        lambda: (
            FrameStates(STATE, STATE)
            + FrameStates(jax.tree.map(lambda x: jnp.concatenate([x, x]), STATE), STATE)
        ),
        r"\(2, 1, 2, 16\) and \(4, 1, 2, 16\) do not add",
    ),
    "no state": (
        lambda: FrameStates(STATE, STATE) + FrameStates(STATE, cast(Any, None)),
        "state holds a NoneType for a State",
    ),
    "mean": (lambda: state_mean(State(ONES, ONES[0])), r"sum \(2, 6, 8\) and count \(6, 8\)"),
    "mean of": (lambda: state_mean(cast(Any, FrameStates(STATE, STATE))), "state is a FrameStates; give a"),
    "prefix": (lambda: prefix_sum(ONES[0, 0]), r"x has shape \(8,\); give \[B, N, ...\]"),
    "prefix of": (lambda: prefix_sum(cast(Any, "a")), "x is a str; give an array"),
    "grid": (lambda: grid_positions(-1, 2), r"grid_positions\(-1, 2\): give the sizes"),
    "grid of": (lambda: grid_positions(cast(Any, 2.5)), "whole numbers of at least 0"),
    "no grid": (grid_positions, r"grid_positions\(\): give the sizes"),
    "batch": (lambda: PoM().init_state(2**62, WIDTH), r"batch = 4611686018427387904: .* beyond any memory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_functions_refuse_in_words_too(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        call()


def test_lean_is_not_exported_for_any_batch() -> None:
    (batch,) = export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, N, WIDTH), jnp.float32)
    assert shapes(PoM(), x).shape == x.shape
    with pytest.raises(InputError, match="needs to know the batch, which is b: export with 'auto'"):
        shapes(PoM(implementation="lean"), x)
