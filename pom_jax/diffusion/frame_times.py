"""Times of the frames of a clip: one for all, or each its own, for a model that reads finished frames."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pom_jax.diffusion.schedules import TimeSampling, sample_times, stratified_times
from pom_jax.errors import InputError, choose

FRAME_TIMES = ("shared", "independent", "clean_past", "teacher_forcing")


@dataclasses.dataclass(frozen=True)
class FrameTimes:
    """How training draws the times of the F frames of a clip.

    A model that generates frame after frame reads the states of finished frames, at time 0. With one time
    for all frames it has seen no such states, and what it draws falls apart.

    Attributes:
        kind: "shared", one time for the clip, "independent", one for each frame, "clean_past", where the
            frames before one chosen at random are clean, those from it on have times of their own, and only
            these count in the loss, or "teacher_forcing": each frame of several noisy drafts of the clip, at
            times of their own, reads the clean frames before it, exactly as when a film is drawn.
        given: "clean_past", "teacher_forcing": frames at the start that do not count, because a film is
            continued from them.
        drafts: "teacher_forcing": noisy drafts of a clip, which share what it costs to run the clean one.
    """

    kind: str = "shared"
    given: int = 0
    drafts: int = 0

    def __post_init__(self):
        choose("diffusion.frame_times", self.kind, FRAME_TIMES)
        if self.given < 0 or (self.given and self.kind not in ("clean_past", "teacher_forcing")):
            raise InputError(
                f"diffusion.given_frames={self.given} must be at least 0, and 0 unless "
                "diffusion.frame_times is 'clean_past' or 'teacher_forcing'"
            )
        if (self.drafts < 1) if self.kind == "teacher_forcing" else self.drafts:
            raise InputError(
                f"diffusion.drafts={self.drafts} must be at least 1 with "
                "diffusion.frame_times='teacher_forcing', and 0 without"
            )

    @property
    def takes(self) -> int:
        """How many clips the network sees for one of the data: the clean one and its drafts, or just one."""
        return 1 + self.drafts


class Times(NamedTuple):
    """Times of clips, and what each counts in the loss: both [B, F] float32, [B, 1] if shared.

    With drafts [B, (1 + drafts) F], the clean clip's first.
    """

    t: jax.Array
    weight: jax.Array


def check_given(how: FrameTimes, frames: int) -> None:
    """Raises an InputError if as many frames are given as there are."""
    if how.given >= frames:
        raise InputError(
            f"diffusion.given_frames={how.given} leaves nothing to learn of clips of {frames} frames"
        )


def draw_times(key: jax.Array, clips: int, frames: int, times: TimeSampling | None, how: FrameTimes) -> Times:
    """Draws times for a training batch.

    Args:
        key: of the draw.
        clips: B.
        frames: F.
        times: how each time is drawn; None for stratified ones, evenly over [0, 1], for validation.
        how: of frames.

    Raises:
        InputError: as many frames given as there are.
    """
    check_given(how, frames)
    time_key, past_key = jax.random.split(key)
    count = clips if how.kind == "shared" else clips * frames * max(1, how.drafts)
    t = stratified_times(time_key, count) if times is None else sample_times(time_key, count, times)
    t = t.reshape(clips, -1)
    weight = jnp.ones_like(t)
    if how.kind == "clean_past":
        finished = jax.random.randint(past_key, (clips, 1), how.given, frames)
        weight = (jnp.arange(frames) >= finished).astype(jnp.float32)
        t *= weight
    if how.kind == "teacher_forcing":
        counts = (jnp.arange(frames) >= how.given).astype(jnp.float32)
        t = jnp.pad(t, ((0, 0), (frames, 0)))
        weight = jnp.tile(counts, how.takes).at[:frames].set(0)
    return Times(t, jnp.broadcast_to(weight, t.shape))


def make_frame_times(config: Any) -> FrameTimes:
    """The times of frames of a config's `diffusion` section (`frame_times`, `given_frames`, `drafts`)."""
    return FrameTimes(
        config.get("frame_times", "shared"), config.get("given_frames", 0), config.get("drafts", 0)
    )
