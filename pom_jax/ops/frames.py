"""Frames of tokens: their lengths, and how tokens of ragged frames are laid out in tiles of one size."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from pom_jax.errors import InputError
from pom_jax.ops.mesh import lay, where_tokens_are

# How much longer padding may make a sequence of ragged frames.
MAX_PADDING = 1.125


def frame_lengths(frames: int | Sequence[int], tokens: int, name: str = "frames") -> tuple[int, ...]:
    """The number of tokens of each frame.

    Args:
        frames: one length for all, or a length for each frame.
        tokens: N, which the lengths must add up to.
        name: of the argument, for errors.

    Returns:
        T lengths that add up to N.

    Raises:
        InputError: lengths below 1, or that do not add up to N.
    """
    if isinstance(frames, int | np.integer) and not isinstance(frames, bool):
        length = int(frames)
        if length < 1 or tokens % length:
            raise InputError(
                f"{name} = {length} does not divide the {tokens} tokens; give a divisor, or all lengths"
            )
        return (length,) * (tokens // length)
    if not isinstance(frames, Sequence) or isinstance(frames, str):
        raise InputError(f"{name} = {frames!r} must be the length of a frame or a tuple of lengths")
    for length in frames:
        if not isinstance(length, int | np.integer) or isinstance(length, bool) or length < 1:
            raise InputError(f"{name}: {length!r} in {_shown(frames)} is not a length of at least 1")
    lengths = tuple(int(length) for length in frames)
    if sum(lengths) != tokens:
        raise InputError(f"{name} {_shown(lengths)} add up to {sum(lengths)} tokens, but there are {tokens}")
    return lengths


def check_drafts(drafts: int, frames: int | None) -> None:
    """Raises an InputError unless so many frames, None for no frames, are a take and as many drafts of it."""
    if isinstance(drafts, bool) or not isinstance(drafts, int | np.integer):
        raise InputError(f"drafts = {drafts!r} must be a whole number of at least 0")
    if drafts == 0:
        return
    if drafts < 0 or frames is None or frames % (1 + drafts):
        given = "no frames" if frames is None else f"{frames} frames"
        raise InputError(
            f"drafts = {drafts} with {given}: give frames= of a take and of each of its drafts, so that "
            "their number is a multiple of 1 + drafts"
        )


def _shown(frames: Sequence[int]) -> str:
    """Lengths for an error, the first of many."""
    return str(tuple(frames)) if len(frames) <= 12 else f"({', '.join(map(str, frames[:12]))}, ...)"


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tokens of T frames as tiles of L tokens, each within one frame; equal frames are their own tiles.

    Tokens that are cut over devices lie in tiles that each are on one of them: what belongs to a tile is
    computed where its tokens are, and only what belongs to a frame is of all devices.

    Attributes:
        size: L.
        frame: [tiles] the frame of each tile.
        index: [tiles * L] the token at each place, any token of its frame where `used` is false.
        used: [tiles, L] which places hold a token.
        place: [N] the place of each token.
        frames: T.
        parts: equal parts of the sequence, one a device, each of whole tiles; 1 for tokens on one device.
    """

    size: int
    frame: np.ndarray
    index: np.ndarray
    used: np.ndarray
    place: np.ndarray
    frames: int
    parts: int = 1

    @property
    def exact(self) -> bool:
        """Whether frames and tiles are the same and nothing is padded."""
        return len(self.frame) == self.frames and not self.padded

    @property
    def padded(self) -> bool:
        """Whether some places hold no token; else tokens lie as they came."""
        return not self.used.all()

    @property
    def lengths(self) -> np.ndarray:
        """[T] places of each frame."""
        return self.size * np.bincount(self.frame, minlength=self.frames)

    def split(self, x: Array) -> Array:
        """[B, N, ...] -> [B, tiles, L, ...]."""
        placed = jnp.take(x, self.index, axis=1) if self.padded else x
        return placed.reshape(x.shape[0], len(self.frame), self.size, *x.shape[2:])

    def join(self, x: Array) -> Array:
        """[B, tiles, L, ...] -> [B, N, ...]."""
        flat = x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])
        return jnp.take(flat, self.place, axis=1) if self.padded else flat

    def sum_by_frame(self, x: Array) -> Array:
        """Sums of tiles to sums of frames, [B, tiles, ...F] -> [B, T, ...F]; all devices then hold all."""
        if self.parts > 1:
            found = where_tokens_are(self._sum_of_part, None, x, self.frame[None])
            return lay(found.sum(1), "batch", None, ...)
        if len(self.frame) == self.frames:
            return x
        total = jnp.zeros((x.shape[0], self.frames, *x.shape[2:]), x.dtype)
        return total.at[:, self.frame].add(x, indices_are_sorted=True)

    def spread(self, x: Array) -> Array:
        """What belongs to a frame to its tiles, [B, T, ...] -> [B, tiles, ...]."""
        if self.parts > 1:  # part by part, for the slope of one `take` is scattered over the devices
            return where_tokens_are(self._take_in_part, x, self.frame[None])
        return x if len(self.frame) == self.frames else jnp.take(x, self.frame, axis=1)

    def _sum_of_part(self, _: None, x: Array, frame: Array) -> Array:
        """Sums of the tiles of one device, [B, 1, T, ...]; frames of others have 0."""
        total = jnp.zeros((x.shape[0], self.frames, *x.shape[2:]), x.dtype)
        return total.at[:, frame[0]].add(x, **self._indices)[:, None]

    def _take_in_part(self, x: Array, frame: Array) -> Array:
        """What belongs to the tiles of one device."""
        return x.at[:, frame[0]].get(**self._indices)

    @property
    def _indices(self) -> dict[str, Any]:
        """What is known of the frames of one device's tiles: sums of one term have no order to depend on."""
        differ = bool((np.diff(self.frame.reshape(self.parts, -1)) > 0).all())
        return {"indices_are_sorted": True, "unique_indices": differ, "mode": "promise_in_bounds"}


def one_frame(tokens: int) -> Tiles:
    """All tokens as one frame, which may be empty."""
    place = np.arange(tokens)
    return Tiles(tokens, np.zeros(1, np.int64), place, np.ones((1, tokens), bool), place, 1)


@functools.lru_cache(maxsize=64)
def tiles(lengths: tuple[int, ...], parts: int = 1) -> Tiles:
    """The largest tiles that lengthen the sequence by at most an eighth.

    With several parts the largest that fit in each exactly, without padding.

    Args:
        lengths: of the frames.
        parts: equal parts that the sequence is cut in over devices.
    """
    counts = np.asarray(lengths, np.int64)
    if parts > 1:
        size = math.gcd(sum(lengths) // parts, *lengths)
        frame, place = np.repeat(np.arange(len(counts)), counts // size), np.arange(counts.sum())
        return Tiles(size, frame, place, np.ones((len(frame), size), bool), place, len(counts), parts)
    size = int(counts.max(initial=1))
    if (counts != size).any():
        size = 1 << int(counts.max()).bit_length()
        while size > 1 and (-(-counts // size) * size).sum() > MAX_PADDING * counts.sum():
            size //= 2
    per_frame = -(-counts // size)
    frame = np.repeat(np.arange(len(counts)), per_frame)
    start = np.cumsum(counts) - counts
    moved = (np.cumsum(per_frame * size) - per_frame * size) - start
    place = np.repeat(moved, counts) + np.arange(counts.sum())
    index = np.repeat(start, per_frame * size)  # padding is of its own frame: zero times NaN stays there
    used = np.zeros(len(frame) * size, bool)
    index[place], used[place] = np.arange(counts.sum()), True
    return Tiles(size, frame, index, used.reshape(-1, size), place, len(counts))
