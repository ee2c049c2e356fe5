"""Attention beside the mixer by frames: each frame alone, nothing carried, as its halves stream."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from configs import moving_digits
from pom_jax import models, ops
from pom_jax.errors import InputError
from pom_jax.models.mixers import clip_mixers
from pom_jax.nn import Hybrid, LocalAttention, MultiHeadAttention, PoM, Rotary
from pom_jax.training import flops
from pom_jax.training.objective import make_objective, mean_loss
from tests.layers import normal, quick_jit
from tests.mesh_agreement import awake
from tests.test_hybrid import allowed, assert_close, parameters

FRAMES, FRAME = 3, (2, 3)
CLIPS = {"family": "polymorpher", "frames": FRAMES, "frame_height": 2, "frame_width": 3, "channels": 1}
CLIPS |= {"text_length": 1, "text_width": 4, "patch_size": 1, "width": 8, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("fields", "radius"),
    [
        ({"mixer": "hybrid", "window": 1, "frame_causal": True}, (0, 1, 1)),
        ({"attention_every": 2, "frame_causal": True}, (0, 9, 9)),
        ({"attention_every": 2, "window": 1}, (1, 1, 1)),
        ({"mixer": "hybrid"}, (9, 9, 9)),
    ],
)
def test_attention_in_a_clip_is_to_the_own_frame_or_to_what_is_near_in_time_too(
    fields: dict[str, Any], radius: tuple[int, ...]
) -> None:
    """The Jacobian of a layer of attention is that of such windows, drafts or not, and pairs count."""
    model = models.build(CLIPS | fields)
    causal = model.frame_causal
    takes = 2 if causal else 1
    last = clip_mixers(model, (takes * FRAMES, *FRAME))[-1]
    layer: Any = (last.args[1] if last.func is Hybrid else last)()
    tokens = takes * FRAMES * math.prod(FRAME)
    p, x = parameters(layer, jnp.zeros((1, tokens, 8))), normal(1, 1, tokens, 8)
    options = {"frames": math.prod(FRAME), "drafts": takes - 1} if causal else {}
    slopes = quick_jit(jax.jacrev(lambda x: layer.apply(p, x, **options)[0].sum(-1)))(x)[:, 0]
    seen = allowed((takes * FRAMES, *FRAME), radius)
    np.testing.assert_array_equal(np.asarray(slopes).any(-1), seen)
    # Twice the head width has twice the products of attention: projections, and these pairs.
    wide, narrow = (flops.forward_flops(CLIPS | fields | {"head_width": width}) for width in (8, 4))
    layers = 1 if model.attention_every else 2
    clip = tokens // takes
    assert wide - narrow == layers * 2 * 8 * (4 * clip * 8 + 2 * seen.sum() // takes)


@pytest.mark.parametrize("cached", [False, True])
def test_a_hybrid_streams_by_frames_as_its_halves_do(cached: bool) -> None:
    """Frame by frame it is the whole; windows carry nothing beside PoM's state, attention to all a cache."""
    length, heads = math.prod(FRAME), {"head_width": 6, "rotary": Rotary(3)}
    x, at = normal(1, 2, FRAMES * length, 8), ops.grid_positions(FRAMES, *FRAME)

    def hybrid(frames: int) -> Any:
        windows = LocalAttention(2, (frames, *FRAME), (0, 1, 1), **heads)
        half = MultiHeadAttention(2, **heads) if cached else windows
        return Hybrid(PoM(expansion=3, rotary=Rotary(3)), half)

    whole, one = hybrid(FRAMES), hybrid(1)
    p = parameters(whole, x, positions=at)

    @quick_jit
    def both(x: Array, at: Array) -> Any:
        state, parts = one.init_state(2, 8), []
        for f in range(FRAMES):
            here = slice(f * length, (f + 1) * length)
            y, state = one.apply(p, x[:, here], positions=at[here], state=state)
            parts.append(y)
        return whole.apply(p, x, positions=at, frames=length), jnp.concatenate(parts, 1), state

    together, streamed, state = both(x, at)
    assert_close(streamed, together)
    assert state.keys() == {"pom", "attention"}
    grown = sum(leaf.size for leaf in jax.tree.leaves(state["attention"]))
    assert (grown > 0) == cached
    assert np.abs(both(x, 0 * at)[0] - together).max() > 1e-2, "positions matter"


def test_windows_that_would_leave_a_frame_or_see_behind_a_state_are_refused() -> None:
    x, grid = jnp.zeros((1, 12, 8)), (3, 2, 2)
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (LocalAttention(2, grid, 1), {"frames": 4}, r"lengths 4: .* radius = 1 .* a radius of 0"),
        (LocalAttention(2, grid, (0, 1, 1)), {"frames": 6}, r"lengths 6: .* grid = \(3, 2, 2\)"),
        (LocalAttention(2, grid, (0, 1, 1)), {"frames": (4, 5, 3)}, "lengths 3, 4, 5"),
        (LocalAttention(2, (2, 5), (0, 1), 2), {"frames": 6}, "global_tokens = 2 would leave them"),
        (LocalAttention(2, grid, (0, 1, 1)), {"frames": 4, "drafts": 1}, "drafts = 1 with 3 frames"),
        (LocalAttention(2, grid, 1, causal=True), {"state": ()}, "causal=True take"),
        (LocalAttention(2, grid, 1), {"state": {}}, "which init_state gives"),
        (LocalAttention(2, grid, 1, head_width=6, rotary=Rotary(3)), {}, r"of shape \(12, 3\), got None"),
        (Hybrid(PoM(), LocalAttention(2, grid, 1)), {"state": ()}, "not of a Hybrid: start from init_state"),
    ]
    for layer, options, words in refused:
        with pytest.raises(InputError, match=words):
            jax.eval_shape(lambda x, a=layer, o=options: a.init(jax.random.key(0), x, **o), x)


def test_the_recipe_of_moving_digits_trains_a_hybrid_as_it_stands() -> None:
    """With drafts and stills: the loss has a slope by every parameter, but by biases of attention's keys."""
    config = moving_digits.get_config()
    config.model.update({"mixer": "hybrid", "attention_every": 2, "window": 1})
    config.model.update({"width": 16, "depth": 2, "ffn_expansion": 1})
    config.diffusion.update({"drafts": 1, "film_every": 2})
    model = models.build(config.model, config.dtype)
    objective = make_objective(config, model)
    params, x = awake(model, models.dummy_inputs(model)), normal(1, 2, 8, 16, 16, 1)
    text = models.Text(jnp.asarray([[3, 1, 2, 4], [5, 6, 7, 8]]), jnp.ones((2, 4)))

    @quick_jit
    def slopes(params: Any, x: Array) -> Any:
        return jax.grad(lambda p: mean_loss(objective(p, jax.random.key(0), x, text, jnp.ones(2))))(params)

    for path, leaf in jax.tree.leaves_with_path(slopes(params, x)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 1e-9 or "'key'" in jax.tree_util.keystr(path), path
