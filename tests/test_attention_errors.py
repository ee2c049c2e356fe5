"""What attention and its hybrids with the mixer cannot do is refused in words, as the mixer refuses it."""

import dataclasses
import inspect
import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from hypothesis import given, settings
from hypothesis import strategies as st

from pom_jax.errors import InputError
from pom_jax.nn import Hybrid, LocalAttention, MultiHeadAttention, PoM, Rotary
from pom_jax.nn.attention import Cache
from pom_jax.ops import attention, local_attention
from tests.layers import WIDTH, normal, parameters, quick_jit
from tests.test_mixer_errors import B, N, check, fitting, fuzz, odd, shapes

GRIDS: dict[str, Any] = {"grid": (2, 3), "radius": (0, 1)}
OWN: dict[type, dict[str, Any]] = {MultiHeadAttention: {}, LocalAttention: GRIDS}
FIELDS = [
    (kind, field.name)
    for kind in OWN
    for field in dataclasses.fields(kind)
    if field.name not in ("parent", "name", "kernel_init")
]
CACHE: Any = MultiHeadAttention(2).init_state(B, WIDTH)
LAYERS: list[Any] = [
    MultiHeadAttention(2),
    MultiHeadAttention(2, reads=("own",), rotary=Rotary()),
    LocalAttention(2, **GRIDS),
    LocalAttention(2, (N,), 1, causal=True, rotary=Rotary()),
    Hybrid(PoM(), LocalAttention(2, **GRIDS)),
    Hybrid(PoM(rotary=Rotary()), MultiHeadAttention(2, rotary=Rotary())),
]
ARGUMENTS = ["context", "mask", "causal", "frames", "context_frames", "positions", "state", "drafts"]
states = st.sampled_from([CACHE, (), CACHE._replace(weights=CACHE.keys), LAYERS[4].init_state(B, WIDTH)])


@fuzz
@given(st.sampled_from(FIELDS), odd, st.booleans())
def test_no_field_makes_anything_else_than_an_input_error(
    of: tuple[type, str], value: Any, turned: bool
) -> None:
    kind, field = of
    fields: dict[str, Any] = {"num_heads": 2} | OWN[kind] | ({"rotary": Rotary()} if turned else {})
    layer: Any = kind(**fields | {field: value})
    check(layer, positions=np.arange(N))
    try:
        layer.init_state(B, WIDTH)
    except InputError:
        assert kind is MultiHeadAttention


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(LAYERS),
    st.dictionaries(st.sampled_from(ARGUMENTS), fitting | odd | states, min_size=1, max_size=3),
)
def test_no_arguments_make_anything_else_than_an_input_error(layer: Any, arguments: dict[str, Any]) -> None:
    takes = inspect.signature(type(layer).__call__).parameters
    if not isinstance(layer, Hybrid):  # which hands over what it does not know
        arguments = {name: value for name, value in arguments.items() if name in takes}
    check(layer, **arguments)


@fuzz
@given(
    tokens=st.integers(0, 3),
    heads=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 3),
    missing=st.integers(0, 1),
)
def test_a_cache_fits_or_both_shapes_are_named(tokens: int, heads: int, batch: int, missing: int) -> None:
    keys: Any = np.zeros((batch, tokens, heads, WIDTH // heads), np.float32)
    weights: Any = np.zeros((batch, max(tokens - missing, 0)))
    message = check(MultiHeadAttention(2), state=Cache(keys, keys, weights))
    fits = (heads, batch) == (2, B) and weights.shape == keys.shape[:2]
    assert (message is None) is fits
    if message is not None:
        assert str(keys.shape) in message
        assert f"[B, S, H, d] = ({B}, S, 2, {WIDTH // 2})" in message


@fuzz
@given(axes=st.integers(1, 3), shape=st.lists(st.integers(0, 4), max_size=4).map(tuple))
def test_positions_have_a_row_for_each_token(axes: int, shape: tuple[int, ...]) -> None:
    layer = MultiHeadAttention(1, head_width=6, rotary=Rotary(axes))
    x = jax.ShapeDtypeStruct((B, 3, WIDTH), jnp.float32)
    message = check(layer, x, positions=np.zeros(shape))
    fits = shape in ((3, axes), (1, 3, axes), (B, 3, axes)) or (axes == 1 and shape in ((3,), (1, 3), (B, 3)))
    assert (message is None) is fits
    assert message is None or f"3 tokens on {axes} axes need [3, {axes}]" in message


WHOLE = MultiHeadAttention(2)
TURNED: Any = MultiHeadAttention(2, rotary=Rotary())
LOCAL = LocalAttention(2, **GRIDS)
ODD: Any = {"foo": "foo", "three": 3, "x": ("x",)}
MISTAKES: list[tuple[Any, dict[str, Any], str]] = [
    (WHOLE, {"state": MultiHeadAttention(2).init_state(3, WIDTH)}, r"keys \(3, 0, 2, 4\).* \(2, S, 2, 4\)"),
    (WHOLE, {"state": PoM().init_state(B, WIDTH)}, "state is a State, but attention carries a Cache"),
    (WHOLE, {"state": ()}, "state is a tuple, but attention carries a Cache"),
    (WHOLE, {"state": CACHE._replace(values=None)}, "values of the state is a NoneType"),
    (MultiHeadAttention(ODD["foo"]), {}, "num_heads = 'foo' must be a whole number of at least 1"),
    (MultiHeadAttention(2, head_width=ODD["foo"]), {}, "head_width = 'foo' must be a whole number"),
    (MultiHeadAttention(2, dtype="foo"), {}, "dtype = 'foo'"),
    (LocalAttention(2, (N,), 1, head_width=10**30), {}, f"head_width = {10**30} is above 2147483647"),
    (MultiHeadAttention(2, head_width=2**30), {}, r"num_heads \* head_width = 2147483648 is above"),
    (Hybrid(PoM, LocalAttention), {}, "attention = <class .*> makes no half: .*missing 3 required"),
    (Hybrid(PoM, lambda name: name), {}, "attention = <function .*> makes a str, not a module"),
    (Hybrid(linen.Dense(8), WHOLE), {}, "pom = Dense takes no mask, and"),
    (Hybrid(linen.MultiHeadDotProductAttention(2), WHOLE), {"state": CACHE}, "takes no state, and options"),
    (LocalAttention(2, (N,), 1, dtype="int32"), {}, "dtype = int32 has no fractions"),
    (MultiHeadAttention(2, reads=ODD["x"]), {}, r"reads = \('x',\) of attention must be"),
    (MultiHeadAttention(2, rotary=ODD["foo"]), {}, r"rotary = 'foo' must be None or nn.Rotary"),
    (MultiHeadAttention(2, rotary=Rotary(0)), {}, "axes is 1, 2 or 3"),
    (MultiHeadAttention(2, rotary=Rotary(3)), {}, "on 3 axes .* heads of 4 are too narrow: give at least 6"),
    (TURNED, {}, r"needs positions= of shape \(6, 1\), got None"),
    (TURNED, {"positions": ["a"] * N}, "positions must be numbers"),
    (TURNED, {"positions": [10**400] * N}, "positions must be numbers"),
    (TURNED, {"positions": 1j * np.arange(N)}, "positions must be numbers .* complex"),
    (WHOLE, {"context_frames": 2}, "context_frames = 2 needs frames"),
    (WHOLE, {"frames": 2, "context_frames": 3}, "frames are 3 and context_frames 2"),
    (WHOLE, {"frames": 3, "drafts": 1, "context_frames": 3}, "without context_frames, mask and state"),
    (WHOLE, {"frames": 2, "mask": np.ones((B, 5))}, r"mask has shape \(2, 5\)"),
    (WHOLE, {"context": np.zeros((B, N)), "frames": 2}, r"context has shape \(2, 6\)"),
    (LOCAL, {"state": np.ones(3)}, r"take \(\), which init_state gives"),
    (LOCAL, {"state": CACHE}, r"take \(\), which init_state gives"),
    (LocalAttention(2, (N,), 1, causal=ODD["three"]), {}, "causal = 3 must be True or False"),
    (LAYERS[4], {"causal": True}, r"attention = LocalAttention takes no causal, .* a field of it"),
    (LAYERS[4], {"context_frames": 2}, "attention = LocalAttention takes no context_frames"),
]


@pytest.mark.parametrize(("layer", "arguments", "message"), MISTAKES)
def test_each_mistake_has_words_of_its_own(layer: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shapes(layer, **arguments)


def test_states_that_cannot_be_made() -> None:
    layer: Any = MultiHeadAttention(2)
    for batch in (-1, "a", 2.5, None):
        with pytest.raises(InputError, match=r"batch = .* must be a whole number"):
            layer.init_state(batch, WIDTH)
    for heads, message in ((0, "num_heads = 0"), (-1, "num_heads = -1"), (3, "num_heads = 3 .* the width 8")):
        with pytest.raises(InputError, match=message):
            MultiHeadAttention(heads).init_state(B, WIDTH)
    with pytest.raises(InputError, match=r"batch = .* beyond any memory"):
        layer.init_state(2**62, WIDTH)
    for half, message in (
        (None, "pom = None is neither a module nor a function"),
        (linen.Dense(WIDTH), "pom = Dense has no init_state, so no state"),
        (linen.Dense, "pom = <class .*> makes no half: .* missing 1 required"),
        (dict, "makes a dict, not a module"),
    ):
        with pytest.raises(InputError, match=message):
            Hybrid(cast(Any, half), layer).init_state(B, WIDTH)


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("shape", [(1, N, 2, 4), (B, N, 1, 4), (B, N, 2, 1), (B, N, 8)])
def test_queries_keys_and_values_fit_or_all_three_shapes_are_named(name: str, shape: tuple[int, ...]) -> None:
    """None is repeated for the others, as an einsum would."""
    fitting: Any = np.ones((B, N, 2, 4), np.float32)
    arrays: dict[str, Any] = dict.fromkeys("qkv", fitting) | {name: np.ones(shape, np.float32)}
    with pytest.raises(InputError, match=rf"\b{name} (is )?{re.escape(str(shape))}"):
        attention(**arrays)
    assert attention(fitting, fitting[:, :3], fitting[:, :3]).shape == fitting.shape


def test_masks_and_tokens_of_functions_are_arrays() -> None:
    q: Any = np.ones((B, N, 2, 4), np.float32)
    rows: Any = [[1] * N] * B
    for call in (
        lambda: attention(q, q, q, rows),
        lambda: local_attention(q, q, q, rows, grid=(N,), radius=1),
    ):
        with pytest.raises(InputError, match="mask is a list; give an array"):
            call()
    with pytest.raises(InputError, match="q is a list; give an array"):
        attention(q.tolist(), q, q)


def test_a_list_of_positions_is_an_array_of_them_and_a_sequence_may_have_its_own() -> None:
    x = normal(0, B, N, WIDTH)
    places = [list(range(N)), list(range(3, 3 + N))]
    params = parameters(TURNED)

    @quick_jit
    def turned(x: Any) -> Any:
        apart = [
            TURNED.apply(params, x[i : i + 1], positions=np.array(place)[:, None])
            for i, place in enumerate(places)
        ]
        return TURNED.apply(params, x, positions=places), jnp.concatenate(apart)

    together, apart = turned(x)
    np.testing.assert_allclose(together, apart, atol=1e-5)
