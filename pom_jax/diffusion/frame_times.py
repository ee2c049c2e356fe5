"""What clips are learned as, and the times of their frames: one for all, or each its own."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pom_jax.diffusion.schedules import TimeSampling, sample_times, stratified_times
from pom_jax.errors import InputError, choose

FRAME_TIMES = ("shared", "independent", "clean_past", "teacher_forcing")


@dataclasses.dataclass(frozen=True)
class FrameTimes:
    """What training makes of clips of F frames, and how it draws the times of these.

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
        film_every: of so many clips of a batch one is learned as a film; 1 for all.
        still_frames: frames of patches of each clip that are learned as pictures, its first one and others
            at random, as in joint training on images and video (arXiv 2204.03458). So a first frame, of which
            a film has one, and what a text asks for are learned from many more clips than there is time for
            as films. Others than the first (2 and more) need not look like what a film begins with.
    """

    kind: str = "shared"
    given: int = 0
    drafts: int = 0
    film_every: int = 1
    still_frames: int = 0

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
        if self.film_every < 1 or self.still_frames < 0 or (self.film_every > 1 and not self.still_frames):
            raise InputError(
                f"diffusion.film_every={self.film_every} must be at least 1 and diffusion.still_frames="
                f"{self.still_frames} at least 0; with film_every above 1 the other clips are learned as "
                "stills alone, of which there must be at least one"
            )

    @property
    def takes(self) -> int:
        """How often the network sees a film: itself and its drafts."""
        return 1 + self.drafts


class Times(NamedTuple):
    """Times of clips, and what each counts in the loss: both [B, F] float32, [B, 1] if shared.

    With drafts [B, takes F]: the clip's, then theirs.
    """

    t: jax.Array
    weight: jax.Array


def check_frames(how: FrameTimes, frames: int) -> None:
    """Raises an InputError if as many frames are given as there are, or more are stills."""
    if how.given >= frames:
        raise InputError(
            f"diffusion.given_frames={how.given} leaves nothing to learn of clips of {frames} frames"
        )
    if how.still_frames > frames:
        raise InputError(
            f"diffusion.still_frames={how.still_frames}: a clip has {frames} frames of patches to choose from"
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
        InputError: see `check_frames`.
    """
    check_frames(how, frames)
    time_key, past_key = jax.random.split(key)
    teacher = how.kind == "teacher_forcing"
    count = clips if how.kind == "shared" else clips * frames * (how.takes - teacher)
    t = stratified_times(time_key, count) if times is None else sample_times(time_key, count, times)
    t = t.reshape(clips, -1)
    weight = jnp.ones(t.shape[1])
    if teacher:
        t = jnp.pad(t, ((0, 0), (frames, 0)))
        counts = jnp.arange(frames) >= how.given
        weight = jnp.concatenate([jnp.zeros(frames), jnp.tile(counts, how.drafts)])
    weight = jnp.broadcast_to(weight, t.shape)
    if how.kind == "clean_past":
        finished = jax.random.randint(past_key, (clips, 1), how.given, frames)
        weight = jnp.where(jnp.arange(t.shape[1]) >= finished, weight, 0)
        t *= weight
    return Times(t, weight)


def make_frame_times(config: Any) -> FrameTimes:
    """From a config's `diffusion` section."""
    names = {"kind": "frame_times", "given": "given_frames"}
    names |= {name: name for name in ("drafts", "film_every", "still_frames")}
    return FrameTimes(**{field: config[name] for field, name in names.items() if name in config})
