"""What clips are drawn to score a model of moving digits, and what they are shown beside.

text: clips of the training length from the captions of real held-out clips, frame after frame (streamed) and
  all at once (joint). Beside them the real clips.
memory: captions that do not tell the digit; each clip goes on for 16 frames from the first frame of a real
  held-out one. Beside it the real clips, the same first frame for ever (frozen), and what the model makes of
  the first frame of another clip of the same direction (swapped) or of a black one (blank), scored against
  the frame that should have been given: what then is still right does not come from that frame.
length: streamed to 8 times the training length; from a real first frame where captions do not tell the digit.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pom_jax.data import moving_digits
from pom_jax.errors import InputError
from pom_jax.evaluation import moving_digits as clip_scores
from pom_jax.evaluation.moving_digits import Asked, ClipScores, Reference

PROTOCOLS = ("text", "memory", "length")
CONTINUED = 16  # frames that memory draws
TIMES = 8  # the training length, that length draws
SHOWN = 8  # clips of each column that are kept for pictures


class HeldOut(NamedTuple):
    """Real held-out clips.

    Attributes:
        split: "validation" or "test".
        prompts: N captions.
        label: [N] class of the digit.
        shown: what makes the clips.
        size: S, pixels of a frame's side.
        told: whether the captions tell the digit.
    """

    split: str
    prompts: Sequence[str]
    label: np.ndarray
    shown: moving_digits.Clips
    size: int
    told: bool

    @property
    def asked(self) -> Asked:
        """What the true clips show."""
        return Asked(self.label, self.shown.direction, self.shown.start, self.shown.digit)

    def clips(self, frames: int) -> np.ndarray:
        """The true clips at any length, [N, T, S, S, 1] float32 in [-1, 1]."""
        images, _ = moving_digits.digit_images(self.split)
        room = self.size - moving_digits.SIDE
        paths = moving_digits.path(self.shown.start, self.shown.direction, frames, room)
        pixels = moving_digits.render(images[self.shown.digit], paths, self.size)
        return pixels.astype(np.float32) / 8 - 1


class Run(NamedTuple):
    """A model to be scored.

    Attributes:
        name: for people.
        frames: T of the clips that it was trained on.
        streams: whether it draws frame after frame.
        draw: (prompts, frames, joint, given) -> clips [N, T, S, S, 1] in [-1, 1].
    """

    name: str
    frames: int
    streams: bool
    draw: Callable[[Sequence[str], int, bool, np.ndarray | None], np.ndarray]


class Column(NamedTuple):
    """Clips of one kind, their scores and some of them: [n, T, S, S, 1] in [-1, 1]."""

    name: str
    scores: ClipScores
    clips: np.ndarray


class Part(NamedTuple):
    """Frames over which scores are averaged, and which scores are shown of them (all by default)."""

    name: str
    frames: slice
    only: tuple[str, ...] = ()


class Found(NamedTuple):
    """What a protocol found.

    Attributes:
        protocol: its name.
        about: what was drawn, in words.
        parts: in the order to show them; what is lost is counted from the last but one to the last of memory
            and length.
        columns: models first, then what they are shown beside, the real clips last.
        prompts: of the clips that the columns keep.
    """

    protocol: str
    about: str
    parts: Sequence[Part]
    columns: Sequence[Column]
    prompts: Sequence[str]


Say = Callable[[str], None]


def fitting(runs: Sequence[Run], held: HeldOut) -> list[str]:
    """The protocols that these models and captions allow, in order; an InputError if there is none."""
    unfit = {name: _unfit(name, runs, held) for name in PROTOCOLS}
    if None not in unfit.values():
        raise InputError("no protocol fits: " + "; ".join(f"{name}, {why}" for name, why in unfit.items()))
    return [name for name, why in unfit.items() if why is None]


def check_protocol(name: str, runs: Sequence[Run], held: HeldOut) -> None:
    """Raises an InputError if these models or captions do not allow a protocol."""
    if (why := _unfit(name, runs, held)) is not None:
        raise InputError(f"--protocol={name}: {why}")


def _unfit(name: str, runs: Sequence[Run], held: HeldOut) -> str | None:
    if name == "text" and not held.told:
        return "the captions do not tell the digit, so no prompt asks for one; --protocol=memory does"
    if name == "memory" and held.told:
        return (
            "the captions tell the digit, which gives the answer away; train on `python prepare.py "
            "moving-digits --captions=direction`"
        )
    whole = [run.name for run in runs if not run.streams]
    if name != "text" and whole:
        return (
            f"{', '.join(whole)} draws all frames at once: only a model with frame_causal goes on from frames"
        )
    return None


def follow(name: str, runs: Sequence[Run], held: HeldOut, reference: Reference, say: Say = print) -> Found:
    """Draws the clips of a protocol and scores them.

    Args:
        name: one of PROTOCOLS.
        runs: the models, all of them of one training length.
        held: the real clips, N of them.
        reference: of the same split.
        say: told what is drawn.

    Raises:
        InputError: see `check_protocol`; what the models raise.
    """
    check_protocol(name, runs, held)
    return {"text": _text, "memory": _memory, "length": _length}[name](runs, held, reference, say)


def _text(runs: Sequence[Run], held: HeldOut, reference: Reference, say: Say) -> Found:
    frames, asked = runs[0].frames, held.asked._replace(start=None)
    columns = []
    for run in runs:
        for joint in (False, True) if run.streams else (True,):
            kind = "joint" if joint else "streamed"
            say(f"drawing {len(held.prompts):,} clips of {frames} frames, {kind}: {run.name}")
            clips = run.draw(held.prompts, frames, joint, None)
            columns.append(_column(f"{run.name}, {kind}", clips, asked._replace(digit=None), reference))
    columns.append(_column("real", held.clips(frames), asked, reference))
    about = f"{len(held.prompts)} clips of {frames} frames from the captions of real ones"
    parts = [
        Part("", slice(None)),
        Part("first step", slice(1, 2), ("direction",)),
        Part("last frame", slice(-1, None)),
    ]
    return Found("text", about, parts, columns, held.prompts[:SHOWN])


def _memory(runs: Sequence[Run], held: HeldOut, reference: Reference, say: Say) -> Found:
    frames = 1 + CONTINUED
    true = held.clips(frames)
    asked = held.asked._replace(true=true)
    first = true[:, :1]
    starts = {"": first, "swapped": first[_others(held.shown.direction)], "blank": np.full_like(first, -1)}
    columns = []
    for kind, given in starts.items():
        for run in runs:
            name = f"{run.name}, {kind}" if kind else run.name
            say(f"going on for {CONTINUED} frames from {len(given):,} first frames: {name}")
            clips = run.draw(held.prompts, frames, False, given)
            meant = np.concatenate([first, clips[:, 1:]], axis=1)  # `score` compares with the first frame
            columns.append(_column(name, meant, asked, reference, given=1)._replace(clips=clips[:SHOWN]))
    columns.append(_column("frozen", np.repeat(first, frames, axis=1), asked, reference, given=1))
    columns.append(_column("real", true, asked, reference, given=1))
    about = f"{len(held.prompts)} clips, each going on for {CONTINUED} frames from 1 real first frame"
    parts = [Part("", slice(1, None)), Part("first", slice(1, 2)), Part("16th", slice(-1, None))]
    return Found("memory", about, parts, columns, held.prompts[:SHOWN])


def _length(runs: Sequence[Run], held: HeldOut, reference: Reference, say: Say) -> Found:
    trained = runs[0].frames
    frames, given = TIMES * trained, 0 if held.told else 1
    true = held.clips(frames)
    if held.told:
        ours = held.asked._replace(start=None, digit=None)
        real = held.asked._replace(start=None)
    else:
        ours = real = held.asked._replace(true=true)
    columns = []
    for run in runs:
        say(f"streaming {len(held.prompts):,} clips to {frames} frames: {run.name}")
        clips = run.draw(held.prompts, frames, False, true[:, :1] if given else None)
        columns.append(_column(run.name, clips, ours, reference, given))
    columns.append(_column("real", true, real, reference, given))
    about = f"{len(held.prompts)} clips streamed to {frames} frames, {TIMES} times the training length"
    parts = [Part(f"first {trained}", slice(given, trained)), Part(f"last {trained}", slice(-trained, None))]
    return Found("length", about, parts, columns, held.prompts[:SHOWN])


def _column(name: str, clips: np.ndarray, asked: Asked, reference: Reference, given: int = 0) -> Column:
    return Column(name, clip_scores.score(reference, clips, asked, given), clips[:SHOWN])


def fewest_to_swap(direction: np.ndarray, num: int) -> int:
    """Clips, `num` or more from the first on, with none alone in its direction [N]; N + 1 if all are too few.

    Args:
        direction: of each clip there is.
        num: of clips, at least 1.
    """
    counts = range(num, len(direction) + 1)
    return next((n for n in counts if 1 not in np.bincount(direction[:n])), len(direction) + 1)


def _others(direction: np.ndarray) -> np.ndarray:
    """For each clip [N] the next one of the same direction, the last one's being the first."""
    found = np.empty(len(direction), int)
    for value in np.unique(direction):
        own = np.flatnonzero(direction == value)
        found[own] = np.roll(own, -1)
    return found
