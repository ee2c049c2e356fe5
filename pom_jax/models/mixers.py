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
    """Makers of the mixers of one period of a `DiPoM`'s layers, each called with `name`.

    A period is one layer, or `attention_every` of them, of which the last is attention: layer i is attention
    where i + 1 is a multiple of it.

    Args:
        model: with the fields of the mixers, checked before.
        grid: rows and columns of the patches, which lie after the model's `registers`.
    """
    pom = functools.partial(
        _pom(model),
        rotary=Rotary(len(grid)) if model.rotary else None,
        phase=phase_of(model.phase_periods, len(grid)),
        grid=tuple(grid),
        global_tokens=model.registers,
    )
    if not model.window:
        return _period(model, pom, _attention(model))
    return _period(model, pom, _windows(model, grid, model.window, global_tokens=model.registers))


def clip_mixers(model: Any, grid: Sequence[int]) -> list[Mixer]:
    """Makers of the mixers of one period of a `Polymorpher`'s layers, as in `layer_mixers`.

    Where frames see only themselves and those before, attention beside PoM or in layers of its own is to a
    token's own frame: it needs no cache. Attention as the only mixer is to the frames before, too.

    Args:
        model: with the fields of the mixers, checked before.
        grid: frames (all takes' of a clip with drafts), rows and columns of the patches.
    """
    rotary = Rotary(3) if model.rotary else None
    phase = phase_of(model.phase_periods, axes=3, still=1)
    pom = functools.partial(_pom(model), rotary=rotary, phase=phase, reads=model.reads)
    if model.frame_causal and model.mixer != "attention":
        attention = _windows(model, grid, (0, *(model.window or size for size in grid[1:])), rotary=rotary)
    elif model.window:
        attention = _windows(model, grid, model.window, rotary=rotary)
    else:
        attention = functools.partial(_attention(model), rotary=rotary)
    return _period(model, pom, attention)


def text_mixer(model: Any) -> Mixer:
    """Maker of what reads a `Polymorpher`'s text: that of its own frame where there is one for each."""
    make = _attention(model) if model.mixer == "attention" else _pom(model)
    return functools.partial(make, reads=("own",))


def phase_of(periods: Sequence[float], axes: int, still: int = 0) -> Phase | None:
    """Standing still, and both directions of every period, on each axis; still alone on the first `still`."""
    if not periods:
        return None
    each = (math.inf, *(sign * float(period) for period in periods for sign in (1, -1)))
    return Phase(((math.inf,),) * still + (each,) * (axes - still))


def _period(model: Any, pom: Mixer, attention: Mixer) -> list[Mixer]:
    kinds = {"pom": pom, "attention": attention, "hybrid": functools.partial(Hybrid, pom, attention)}
    usual = kinds[model.mixer]
    return [*[usual] * (model.attention_every - 1), attention] if model.attention_every else [usual]


def _pom(model: Any) -> Mixer:
    return functools.partial(
        PoM,
        form=model.form,
        degree=model.degree,
        expansion=model.expansion,
        gate_heads=model.gate_heads,
        groups=model.groups,
        dtype=model.dtype,
    )


def _attention(model: Any) -> Mixer:
    return functools.partial(MultiHeadAttention, **_heads(model))


def _windows(model: Any, grid: Sequence[int], radius: int | Sequence[int], **options: Any) -> Mixer:
    return functools.partial(LocalAttention, grid=tuple(grid), radius=radius, **_heads(model), **options)


def _heads(model: Any) -> dict[str, Any]:
    return {"num_heads": model.num_heads, "head_width": model.head_width, "dtype": model.dtype}
