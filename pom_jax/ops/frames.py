"""Frames of tokens: their lengths, and how tokens of ragged frames are laid out in tiles of one size."""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from pom_jax.errors import InputError

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


def _shown(frames: Sequence[int]) -> str:
    """Lengths for an error, the first of many."""
    return str(tuple(frames)) if len(frames) <= 12 else f"({', '.join(map(str, frames[:12]))}, ...)"


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tokens of T frames as tiles of L tokens, each within one frame; equal frames are their own tiles.

    Attributes:
        size: L.
        frame: [tiles] the frame of each tile.
        index: [tiles * L] the token at each place, any token where `used` is false.
        used: [tiles, L] which places hold a token.
        place: [N] the place of each token.
        frames: T.
    """

    size: int
    frame: np.ndarray
    index: np.ndarray
    used: np.ndarray
    place: np.ndarray
    frames: int

    @property
    def exact(self) -> bool:
        """Whether frames and tiles are the same and nothing is padded."""
        return len(self.frame) == self.frames and bool(self.used.all())

    def split(self, x: Array) -> Array:
        """[B, N, ...] -> [B, tiles, L, ...]."""
        placed = x if self.exact else jnp.take(x, self.index, axis=1)
        return placed.reshape(x.shape[0], len(self.frame), self.size, *x.shape[2:])

    def join(self, x: Array) -> Array:
        """[B, tiles, L, ...] -> [B, N, ...]."""
        flat = x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])
        return flat if self.exact else jnp.take(flat, self.place, axis=1)

    def sum_by_frame(self, x: Array) -> Array:
        """Sums of tiles to sums of frames, [B, tiles, ...] -> [B, T, ...]."""
        if self.exact:
            return x
        total = jnp.zeros((x.shape[0], self.frames, *x.shape[2:]), x.dtype)
        return total.at[:, self.frame].add(x, indices_are_sorted=True)

    def spread(self, x: Array) -> Array:
        """What belongs to a frame to its tiles, [B, T, ...] -> [B, tiles, ...]."""
        return x if self.exact else jnp.take(x, self.frame, axis=1)


def one_frame(tokens: int) -> Tiles:
    """All tokens as one frame, which may be empty."""
    place = np.arange(tokens)
    return Tiles(tokens, np.zeros(1, np.int64), place, np.ones((1, tokens), bool), place, 1)


@functools.lru_cache(maxsize=64)
def tiles(lengths: tuple[int, ...]) -> Tiles:
    """The largest tiles that lengthen the sequence by at most an eighth."""
    counts = np.asarray(lengths, np.int64)
    size = int(counts.max(initial=1))
    if (counts != size).any():
        size = 1 << int(counts.max()).bit_length()
        while size > 1 and (-(-counts // size) * size).sum() > MAX_PADDING * counts.sum():
            size //= 2
    per_frame = -(-counts // size)
    frame = np.repeat(np.arange(len(counts)), per_frame)
    moved = (np.cumsum(per_frame * size) - per_frame * size) - (np.cumsum(counts) - counts)
    place = np.repeat(moved, counts) + np.arange(counts.sum())
    index = np.zeros(len(frame) * size, np.int64)
    used = np.zeros(len(frame) * size, bool)
    index[place], used[place] = np.arange(counts.sum()), True
    return Tiles(size, frame, index, used.reshape(-1, size), place, len(counts))
