"""Cuts tokens of frames in runs that are computed one after the other, so that few are expanded at a time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pom_jax.ops.mesh import backend, batch_of_a_device

# Rows that are expanded at a time. A CPU's caches hold no more; accelerators need more to be busy.
CPU_ROWS, ACCELERATOR_ROWS = 1024, 16384
# Each run leaves a partial sum: runs of fewer tokens would keep more of these than they save of features.
LEAST_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Runs:
    """How [B, T, L, ...] becomes [n, B, q, c, ...]: parts of c tokens of a frame, or q whole frames (c = L).

    Attributes:
        frames: T.
        tokens: L.
        run_frames: q.
        run_tokens: c.
    """

    frames: int
    tokens: int
    run_frames: int
    run_tokens: int

    @property
    def groups(self) -> int:
        """Frames, or groups of frames, that runs hold."""
        return -(-self.frames // self.run_frames)

    @property
    def parts(self) -> int:
        """Runs that a frame is cut in, 1 where runs hold whole frames."""
        return -(-self.tokens // self.run_tokens)

    @property
    def count(self) -> int:
        """n."""
        return self.groups * self.parts

    @property
    def padded(self) -> bool:
        """Whether the last run holds places without a token."""
        return self.tokens % self.run_tokens > 0 or self.frames % self.run_frames > 0

    def pad(self, tokens: Any) -> Any:
        """Arrays [B, T, L, ...] with zeros behind, so that runs divide frames and tokens."""
        if not self.padded:
            return tokens
        frames = self.groups * self.run_frames - self.frames
        places = self.parts * self.run_tokens - self.tokens

        def pad(x: Array) -> Array:
            return jnp.pad(x, ((0, 0), (0, frames), (0, places)) + ((0, 0),) * (x.ndim - 3))

        return jax.tree.map(pad, tokens)

    def trim(self, tokens: Any) -> Any:
        """The inverse of `pad`."""
        return jax.tree.map(lambda x: x[:, : self.frames, : self.tokens], tokens) if self.padded else tokens

    def at(self, tokens: Any, run: Array) -> Any:
        """The tokens of a run, by its number: padded [B, T, L, ...] -> [B, q, c, ...]."""

        def at(x: Array) -> Array:
            size = (x.shape[0], self.run_frames, self.run_tokens, *x.shape[3:])
            return lax.dynamic_slice(x, self._start(x, run), size)

        return jax.tree.map(at, tokens)

    def put(self, tokens: Any, run: Array, part: Any) -> Any:
        """Padded [B, T, L, ...] with [B, q, c, ...] in the place of a run: no copy in the carry of a loop."""

        def put(x: Array, part: Array) -> Array:
            return lax.dynamic_update_slice(x, part, self._start(x, run))

        return jax.tree.map(put, tokens, part)

    def _start(self, x: Array, run: Array) -> tuple[Array | int, ...]:
        frame, place = run // self.parts * self.run_frames, run % self.parts * self.run_tokens
        return 0, frame, place, *(0,) * (x.ndim - 3)

    def group(self, x: Array) -> Array:
        """What belongs to a frame, [B, T, ...] -> [groups, B, q, ...], padded with zeros."""
        pad = -self.frames % self.run_frames
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2)) if pad else x
        return jnp.moveaxis(x.reshape(x.shape[0], self.groups, self.run_frames, *x.shape[2:]), 1, 0)

    def of_run(self, groups: Array, run: Array) -> Array:
        """What belongs to the frames of a run: [groups, B, q, ...] and its number -> [B, q, ...]."""
        return pick(groups, run // self.parts)

    def total(self, x: Array) -> Array:
        """Sums of runs [n, B, q, ...] to sums of frames [B, T, ...]."""
        if self.parts > 1:
            x = x.reshape(self.groups, self.parts, *x.shape[1:]).sum(1)
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], self.groups * self.run_frames, *x.shape[3:])[:, : self.frames]


def pick(x: Array, index: Array) -> Array:
    """x[index] of a long array of small ones, for use in a loop.

    On CPU a plain slice would end up within the elementwise work that uses it, which is then not vectorised
    and takes seven times as long; a sum stays apart.
    """
    if len(x) == 1:
        return x[0]
    rows = lax.dynamic_slice_in_dim(jnp.pad(x, [(0, 1)] + [(0, 0)] * (x.ndim - 1)), index, 2)
    return jnp.where(jnp.arange(2).reshape(2, *(1,) * (x.ndim - 1)) == 0, rows, 0).sum(0)


def plan_runs(batch: int, frames: int, tokens: int) -> Runs:
    """Runs of about as many rows as the device expands well at a time, and of no more than half of all.

    A compiler does not recompute what a single run has just computed, but keeps it.

    Args:
        batch: B.
        frames: T.
        tokens: L of each frame.
    """
    rows = CPU_ROWS if backend() == "cpu" else ACCELERATOR_ROWS
    each = batch_of_a_device(batch)
    most = max(min(rows, each * frames * tokens // 2) // each, LEAST_TOKENS)
    if not tokens or not frames:
        return Runs(frames, tokens, max(frames, 1), max(tokens, 1))
    if tokens > most:
        return Runs(frames, tokens, 1, _part(tokens, most))
    return Runs(frames, tokens, _part(frames, most // tokens), tokens)


def _part(total: int, most: int) -> int:
    """The size, at most `most`, of equal parts of a total; padded only if equal ones were less than half."""
    least = -(-total // most)
    parts = next((n for n in range(least, min(2 * least, total) + 1) if total % n == 0), least)
    return -(-total // parts)
