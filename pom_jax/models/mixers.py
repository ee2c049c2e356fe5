"""Which mixer each layer of a network has, from the fields that all models share."""

import functools
import math
from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from pom_jax.nn.attention import LocalAttention, MultiHeadAttention
from pom_jax.nn.hybrid import Hybrid
from pom_jax.nn.pom import PoM
from pom_jax.ops.phase import Phase
from pom_jax.ops.rotary import Rotary

MIXERS = ("pom", "attention", "hybrid")

Mixer = functools.partial[nn.Module]


def layer_mixers(model: Any, grid: Sequence[int]) -> list[Mixer]:
    """Makers of the mixers of one period of layers, each called with `name`.

    A period is one layer, or `attention_every` of them, of which the last is attention: layer i is attention
    where i + 1 is a multiple of it.

    Args:
        model: with the fields of the mixers, see `DiPoM`, checked before.
        grid: sizes of the grid that the tokens lie on, after the model's `registers`.
    """
    attention = _attention(model, grid)
    pom = functools.partial(
        PoM,
        form=model.form,
        degree=model.degree,
        expansion=model.expansion,
        gate_heads=model.gate_heads,
        groups=model.groups,
        rotary=Rotary(len(grid)) if model.rotary else None,
        phase=phase_of(model.phase_periods, len(grid)),
        grid=tuple(grid),
        global_tokens=model.registers,
        dtype=model.dtype,
    )
    kinds = {"pom": pom, "attention": attention, "hybrid": functools.partial(Hybrid, pom, attention)}
    usual = kinds[model.mixer]
    return [*[usual] * (model.attention_every - 1), attention] if model.attention_every else [usual]


def phase_of(periods: Sequence[float], axes: int, still: int = 0) -> Phase | None:
    """Standing still, and both directions of every period, on each axis; still alone on the first `still`."""
    if not periods:
        return None
    each = (math.inf, *(sign * float(period) for period in periods for sign in (1, -1)))
    return Phase(((math.inf,),) * still + (each,) * (axes - still))


def _attention(model: Any, grid: Sequence[int]) -> Mixer:
    heads = {"num_heads": model.num_heads, "head_width": model.head_width, "dtype": model.dtype}
    if not model.window:
        return functools.partial(MultiHeadAttention, **heads)
    return functools.partial(
        LocalAttention, grid=tuple(grid), radius=model.window, global_tokens=model.registers, **heads
    )
