"""The block of text-to-video and text-to-image models: text, then the tokens themselves, then each alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pom_jax.errors import choose
from pom_jax.nn.blocks import FeedForward, modulate, modulation
from pom_jax.ops.frames import tiles
from pom_jax.ops.mesh import is_explicit, parts

ORDERS = ("text_first", "self_first")
GATES = (4, 7, 10)  # of a block's eleven modulation vectors


class Given(NamedTuple):
    """What every block receives beside the tokens.

    Attributes:
        time: [B, F, D], one embedding for the whole clip (F = 1) or one a frame.
        text: [B, 1 or F, M, D], the same for the whole clip or one a frame.
        mask: [B, M], zero for a token of text that is not there; a row of zeros is no text at all.
        positions: [N, 3] frame, row and column of each token; None for mixers without positions.
    """

    time: jax.Array
    text: jax.Array
    mask: jax.Array
    positions: jax.Array | None


class TextBlock(nn.Module):
    """Cross-PoM of the text, self-PoM, feed-forward; each scaled, shifted and gated by time (v1, figure 3b).

    Official `TextVideoDiHBlock`: time modulates the text, too, and is the only condition; gates start at
    zero. With a time for each frame, each frame reads the text as its own time modulates it. Text that is
    masked out leaves the output bias of the cross-PoM, as in the authors' dropped captions.

    Attributes:
        mixer: makes the mixer of the tokens, called with `name`; any module with the call of `nn.PoM`.
        text_mixer: makes that of the text; one that reads its "own" frame, for a time a frame.
        frame_tokens: tokens of a frame, which sees itself and those before; 0 where all tokens see all.
        drafts: the frames are a take and so many drafts of it, see `nn.PoM`.
        order: "text_first" (v1), or "self_first" as in the authors' later code.
        ffn_expansion: hidden width of the feed-forward network as a multiple of the width.
        clamp: bound on the absolute value of the output, 0 for none.
        dtype: compute dtype of the products and of the residual stream, float32 if None.
        unit_gates: the biases of the gates are kept as the authors' g, see `ModulatedBlock`.
    """

    mixer: Callable[..., nn.Module]
    text_mixer: Callable[..., nn.Module]
    frame_tokens: int = 0
    drafts: int = 0
    order: str = "text_first"
    ffn_expansion: int = 4
    clamp: float = 0.0
    dtype: DTypeLike | None = None
    unit_gates: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, given: Given, state: Any = None) -> Any:
        """Mixes text into the tokens, then the tokens, then transforms each.

        Args:
            x: [B, N, D], frame after frame.
            given: the condition.
            state: of the mixer, what earlier frames left; None if these are all.

        Returns:
            [B, N, D] in the dtype of x; with `state` also the one after these frames.
        """
        offsets = tuple(float(i in GATES) for i in range(11)) if self.unit_gates else ()
        vectors = modulation(given.time, 11, self.dtype, offsets)
        text_vectors, self_vectors, own_vectors = vectors[:5], vectors[5:8], vectors[8:]
        if choose("order", self.order, ORDERS) == "text_first":
            x = self._read_text(x, given, text_vectors)
        x, after = self._mix(x, given, self_vectors, state)
        if self.order == "self_first":
            x = self._read_text(x, given, text_vectors)
        scale, shift, gate = (of_tokens(each, x.shape[1]) for each in own_vectors)
        h = modulate(x, scale, shift, self.dtype)
        h = FeedForward(self.ffn_expansion, self.dtype, name="feed_forward")(h)
        x = x + (h * gate).astype(x.dtype)
        x = jnp.clip(x, -self.clamp, self.clamp) if self.clamp else x
        return x if state is None else (x, after)

    def _read_text(self, x: jax.Array, given: Given, vectors: list[jax.Array]) -> jax.Array:
        batch, frames, _ = given.time.shape
        length, width = given.text.shape[2:]
        scale, shift, text_scale, text_shift, gate = vectors
        h = modulate(x, of_tokens(scale, x.shape[1]), of_tokens(shift, x.shape[1]), self.dtype)
        # The text once for each frame, as the frame's time modulates it.
        text = jnp.broadcast_to(given.text, (batch, frames, length, width))
        text = modulate(text, text_scale[:, :, None], text_shift[:, :, None], self.dtype)
        text = text.reshape(batch, frames * length, width)
        mask = jnp.tile(given.mask, (1, frames))
        mixer = self.text_mixer(name="text_mixer")
        if frames == 1:
            mixed = mixer(h, text, mask=mask)
        else:
            mixed = mixer(h, text, mask=mask, frames=x.shape[1] // frames, context_frames=length)
        return x + (mixed * of_tokens(gate, x.shape[1])).astype(x.dtype)

    def _mix(self, x: jax.Array, given: Given, vectors: list[jax.Array], state: Any) -> tuple[jax.Array, Any]:
        scale, shift, gate = (of_tokens(each, x.shape[1]) for each in vectors)
        h = modulate(x, scale, shift, self.dtype)
        options = {"frames": self.frame_tokens or None, "positions": given.positions, "state": state}
        if self.drafts:
            options["drafts"] = self.drafts
        mixed = self.mixer(name="mixer")(h, **options)
        mixed, after = (mixed, None) if state is None else mixed
        return x + (mixed * gate).astype(x.dtype), after


def of_tokens(vectors: jax.Array, tokens: int) -> jax.Array:
    """One vector a frame to one a token: [B, F, D] -> [B, N, D]; [B, 1, D] stays, for it broadcasts."""
    batch, frames, width = vectors.shape
    if frames in (1, tokens):
        return vectors
    devices = 1 if is_explicit(vectors) else parts("tokens")
    if frames % devices and devices % frames and tokens % devices == 0:
        # A device has parts of several frames: the compiler would gather all tokens to cut them again.
        vectors = tiles((tokens // frames,) * frames, devices).spread(vectors)
    runs = vectors.shape[1]
    shape = (batch, runs, tokens // runs, width)
    return jnp.broadcast_to(vectors[:, :, None], shape).reshape(batch, tokens, width)
