"""Two kinds of heads in one layer: a state of everything, and attention to what is near."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from flax import linen as nn

from pom_jax.errors import InputError

Half = nn.Module | Callable[..., nn.Module]


class Hybrid(nn.Module):
    """PoM and attention side by side, their outputs summed: PoM(x) + attention(x).

    Each half has its own output product, so the sum is one layer whose heads are of two kinds, laid end to
    end before one output product. Both read whole tokens and write all channels, and neither gives up its own
    parameters, masks or state; how much goes to either is the matter of `expansion` and of the number and
    width of the heads. The authors' SD3-PoM puts the kinds in layers of their own instead: `attention_every`
    of the models.

    Halves may be causal, `Hybrid(PoM(causal=True), LocalAttention(..., causal=True))`. By frames the whole
    mixes and streams as its halves do: windows that stay within a frame carry nothing, and the state is that
    of PoM alone; `nn.MultiHeadAttention` carries a cache that grows.

    Attributes:
        pom: the one half, a module with the call of `nn.PoM`, or what makes one, called with `name`.
        attention: the other, alike: `nn.LocalAttention` or `nn.MultiHeadAttention`.
    """

    pom: Half
    attention: Half

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        state: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """The sum of both halves.

        Args:
            x: [B, M, D].
            context: [B, N, D]; None mixes x with itself.
            mask: as both halves take it.
            state: of both, by name (`init_state`).
            options: more that both halves take: frames, positions, drafts. What one half alone should do is a
                field of it.

        Returns:
            [B, M, D]; with `state` also the one after these tokens.

        Raises:
            InputError: a half that is none, an option that a half does not take, a state of something else,
                or what the halves refuse.
        """
        halves = {name: _module(name, getattr(self, name), name=name) for name in ("pom", "attention")}
        given = {"mask", *options} | (set() if state is None else {"state"})
        for name, half in halves.items():
            _check_options(name, half, given)
        if state is None:
            far, near = (half(x, context, mask=mask, **options) for half in halves.values())
            return far + near
        if not isinstance(state, Mapping) or state.keys() != halves.keys():
            raise InputError(f"state is a {type(state).__name__}, not of a Hybrid: start from init_state")
        (far, of_pom), (near, of_attention) = (
            half(x, context, mask=mask, state=state[name], **options) for name, half in halves.items()
        )
        return far + near, {"pom": of_pom, "attention": of_attention}

    def init_state(self, batch: int, width: int) -> dict[str, Any]:
        """The states of both halves before any token, of `batch` sequences of D = `width` channels.

        Raises:
            InputError: a half that is none or carries no state, or what the halves refuse.
        """
        states = {}
        for field, half in (("pom", self.pom), ("attention", self.attention)):
            module = _module(field, half, parent=None)
            if not hasattr(module, "init_state"):
                raise InputError(f"Hybrid: {field} = {type(module).__name__} has no init_state, so no state")
            states[field] = module.init_state(batch, width)
        return states


def _module(field: str, half: Half, **made_with: Any) -> Any:
    """The half itself, which Flax names after its field, or a new one."""
    if isinstance(half, nn.Module):
        return half
    if not callable(half):
        raise InputError(f"Hybrid: {field} = {half!r} is neither a module nor a function that makes one")
    try:
        made = half(**made_with)
    except TypeError as error:
        raise InputError(
            f"Hybrid: {field} = {half!r} makes no half: {error}; give a module, or functools.partial with "
            "what it misses"
        ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"Hybrid: {field} = {half!r} makes a {type(made).__name__}, not a module")
    return made


def _check_options(field: str, half: nn.Module, options: Collection[str]) -> None:
    """Raises an InputError unless the call of a half takes all options."""
    takes = inspect.signature(type(half).__call__).parameters.values()
    names = {parameter.name for parameter in takes}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes) or {*options} <= names:
        return
    raise InputError(
        f"Hybrid: {field} = {type(half).__name__} takes no {', '.join(sorted({*options} - names))}, and "
        "options of the call go to both halves. What one half alone should do is a field of it, as in "
        "Hybrid(PoM(causal=True), LocalAttention(..., causal=True))"
    )
