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
        stills: times that the frames of a clip are also learned as pictures, each a clip of one frame, as in
            joint training on images and video (arXiv 2204.03458): so a first frame, of which a clip has one,
            is learned from all. Not with "shared".
    """

    kind: str = "shared"
    given: int = 0
    drafts: int = 0
    stills: int = 0

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
        if self.stills < 0 or (self.stills and self.kind == "shared"):
            raise InputError(
                f"diffusion.stills={self.stills} must be at least 0, and 0 with "
                "diffusion.frame_times='shared', where a frame has no time of its own"
            )

    @property
    def takes(self) -> int:
        """How often the network sees a clip of the data: itself, its drafts and its stills."""
        return 1 + self.drafts + self.stills


class Times(NamedTuple):
    """Times of clips, and what each counts in the loss: both [B, F] float32, [B, 1] if shared.

    With drafts and stills [B, takes F]: the clip's, its drafts', its stills'.
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
    teacher = how.kind == "teacher_forcing"
    count = clips if how.kind == "shared" else clips * frames * (how.takes - teacher)
    t = stratified_times(time_key, count) if times is None else sample_times(time_key, count, times)
    t = t.reshape(clips, -1)
    weight = jnp.ones(t.shape[1])
    if teacher:
        t = jnp.pad(t, ((0, 0), (frames, 0)))
        counts = jnp.arange(frames) >= how.given
        weight = jnp.concatenate(
            [jnp.zeros(frames), jnp.tile(counts, how.drafts), jnp.ones(how.stills * frames)]
        )
    weight = jnp.broadcast_to(weight, t.shape)
    if how.kind == "clean_past":
        finished = jax.random.randint(past_key, (clips, 1), how.given, frames)
        weight = jnp.where(jnp.arange(t.shape[1]) >= finished, weight, 0)
        t *= weight
    return Times(t, weight)


def make_frame_times(config: Any) -> FrameTimes:
    """From a config's `diffusion` section: `frame_times`, `given_frames`, `drafts` and `stills`."""
    names = {"kind": "frame_times", "given": "given_frames", "drafts": "drafts", "stills": "stills"}
    return FrameTimes(**{field: config[name] for field, name in names.items() if name in config})
