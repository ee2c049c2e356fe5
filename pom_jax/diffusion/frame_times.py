"""Times of the frames of a clip: one for all, or each its own, for a model that reads finished frames."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pom_jax.diffusion.schedules import TimeSampling, sample_times, stratified_times
from pom_jax.errors import InputError, choose

FRAME_TIMES = ("shared", "independent", "clean_past")


@dataclasses.dataclass(frozen=True)
class FrameTimes:
    """How training draws the times of the F frames of a clip.

    A model that generates frame after frame reads the states of finished frames, at time 0. With one time
    for all frames it has seen no such states, and what it draws falls apart.

    Attributes:
        kind: "shared", one time for the clip, "independent", one for each frame, or "clean_past", where the
            frames before one chosen at random are clean, those from it on have times of their own, and only
            these count in the loss.
        given: "clean_past": frames at the start that are always clean, because a film is continued from them.
    """

    kind: str = "shared"
    given: int = 0

    def __post_init__(self):
        choose("diffusion.frame_times", self.kind, FRAME_TIMES)
        if self.given < 0 or (self.given and self.kind != "clean_past"):
            raise InputError(
                f"diffusion.given_frames={self.given} must be at least 0, and 0 unless "
                "diffusion.frame_times='clean_past'"
            )


class Times(NamedTuple):
    """Times of clips, and what each counts in the loss: both [B, F] float32, or [B, 1] if shared."""

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
    count = clips if how.kind == "shared" else clips * frames
    t = stratified_times(time_key, count) if times is None else sample_times(time_key, count, times)
    t = t.reshape(clips, -1)
    weight = jnp.ones_like(t)
    if how.kind == "clean_past":
        finished = jax.random.randint(past_key, (clips, 1), how.given, frames)
        weight = (jnp.arange(frames) >= finished).astype(jnp.float32)
    return Times(t * weight, weight)


def make_frame_times(config: Any) -> FrameTimes:
    """The times of frames of a config's `diffusion` section (`frame_times`, `given_frames`)."""
    return FrameTimes(config.get("frame_times", "shared"), config.get("given_frames", 0))
