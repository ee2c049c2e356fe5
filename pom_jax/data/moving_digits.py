"""Clips of real handwritten digits that move over a black canvas and bounce off its edges, with captions.

A digit of 8 x 8 pixels moves one pixel a frame to the left, right, up or down. Where it would leave the
canvas it turns round, so that it moves one pixel in every step. The caption tells the digit and the first
direction ("a three moving left"), or the direction alone ("moving left"): then only a given frame tells which
digit it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn
from sklearn.model_selection import train_test_split

from pom_jax.data import digits
from pom_jax.data.manifest import Field, Manifest
from pom_jax.data.words import PADDING, encode
from pom_jax.data.writer import Writer
from pom_jax.errors import InputError, choose

NAME = "moving-digits"
SIDE = 8  # pixels of a digit
DIRECTIONS = ("left", "right", "up", "down")
STEPS = np.array([[0, -1], [0, 1], [-1, 0], [1, 0]])  # (row, column), of each direction
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = {"digit": "a {digit} moving {direction}", "direction": "moving {direction}"}
WORDS = {
    "digit": (PADDING, "a", "moving", *DIGITS, *DIRECTIONS),
    "direction": (PADDING, "moving", *DIRECTIONS),
}
SPLITS = ("train", "validation", "test")
VALIDATION_DIGITS = 200  # of the 1,437 to train on
VALIDATION_CLIPS = TEST_CLIPS = 1000
BATCH = 1000  # clips that are made at once


class Clips(NamedTuple):
    """What makes N clips.

    Attributes:
        digit: [N] int32, index into the images of the split: `digits.load().test_images` for "test", of
            `train_images` for "train" and "validation".
        start: [N, 2] int32, row and column of the digit's upper left pixel in the first frame.
        direction: [N] int32, index into DIRECTIONS.
    """

    digit: np.ndarray
    start: np.ndarray
    direction: np.ndarray


def path(start: np.ndarray, direction: np.ndarray | int, frames: int, room: int) -> np.ndarray:
    """Where a digit is in each frame, for any number of frames.

    Args:
        start: [..., 2] row and column of its upper left pixel in the first frame.
        direction: [...] index into DIRECTIONS.
        frames: T.
        room: pixels that it can move, the canvas's side less the digit's; at least 1.

    Returns:
        [..., T, 2] int32, from 0 to `room`.
    """
    straight = np.asarray(start)[..., None, :] + np.arange(frames)[:, None] * STEPS[direction][..., None, :]
    return (room - np.abs(straight % (2 * room) - room)).astype(np.int32)


def render(images: np.ndarray, paths: np.ndarray, size: int) -> np.ndarray:
    """Clips of digits on a black canvas.

    Args:
        images: [N, 8, 8] uint8.
        paths: [N, T, 2], see `path`.
        size: S, pixels of the canvas's side.

    Returns:
        [N, T, S, S, 1] uint8.

    Raises:
        InputError: a place where the digit is not wholly on the canvas.
    """
    clips, side = len(images), images.shape[1]
    if paths.size and not 0 <= paths.min() <= paths.max() <= size - side:
        raise InputError(
            f"a digit of {side} pixels is at {paths.min()} to {paths.max()}; on a canvas of {size} it must "
            f"be from 0 to {size - side}"
        )
    frames = paths.shape[1]
    canvas = np.zeros((clips, frames, size, size, 1), np.uint8)
    rows = paths[..., 0, None, None] + np.arange(side)[:, None]
    columns = paths[..., 1, None, None] + np.arange(side)
    clip, frame = np.ogrid[:clips, :frames]
    canvas[clip[..., None, None], frame[..., None, None], rows, columns, 0] = images[:, None]
    return canvas


def caption(digit: int, direction: int, captions: str = "digit") -> str:
    """Such as "a three moving left".

    Args:
        digit: its class.
        direction: index into DIRECTIONS.
        captions: "digit" or "direction".
    """
    return CAPTIONS[captions].format(digit=DIGITS[digit], direction=DIRECTIONS[direction])


def set_name(captions: str) -> str:
    """What a data set with captions of this kind is called, and its folder in data/ by default."""
    return NAME if captions == "digit" else f"{NAME}-{captions}"


def caption_words(captions: str) -> int:
    """M, the words of every caption of this kind."""
    return len(CAPTIONS[captions].split())


def split_digits(split: str) -> np.ndarray:
    """Which digits a split shows: [N] indices into the images that `Clips.digit` names.

    1,237 to train on, 200 to choose recipes on, class by class, and the 360 that `digits` holds out.
    """
    found = digits.load()
    if split == "test":
        return np.arange(len(found.test_labels))
    train, validation = train_test_split(
        np.arange(len(found.train_labels)),
        test_size=VALIDATION_DIGITS,
        random_state=0,
        stratify=found.train_labels.tolist(),
    )
    return np.sort({"train": train, "validation": validation}[split])


def digit_images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 8, 8] uint8 of 0 to 16 and labels [N] int32, in which `Clips.digit` of a split counts."""
    found = digits.load()
    if split == "test":
        return found.test_images[..., 0], found.test_labels
    return found.train_images[..., 0], found.train_labels


def draw(split: str, count: int, room: int, seed: int = 0) -> Clips:
    """Chooses the clips of a split; the same ones for a seed.

    Every digit is shown equally often, give or take one. All four directions are equally likely, and so are
    all places of the canvas from which the first step is free: what moves left never begins at the left edge.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    own = split_digits(split)
    rounds = [rng.permutation(own) for _ in range(-(-count // len(own)))]
    direction = rng.integers(len(DIRECTIONS), size=count)
    start = rng.integers(room + 1, size=(count, 2))
    step = STEPS[direction]
    along = rng.integers(room, size=count)  # of the places along the way, one is at the edge that is faced
    start = np.where(step == 0, start, along[:, None] + (step < 0))
    chosen = (np.concatenate(rounds)[:count], start, direction)
    return Clips(*(array.astype(np.int32) for array in chosen))


def prepare(
    out: str | Path,
    *,
    size: int = 16,
    frames: int = 8,
    clips: int = 12_000,
    captions: str = "digit",
    seed: int = 0,
) -> Manifest:
    """Writes the clips as shards to `out`; the same bytes every time.

    Splits are "train", "validation" (to choose recipes on) and "test", no digit in two of them. Beside the
    clip and the words of its caption a record holds its label and its `Clips`, from which `path` and `render`
    make the true clip at any length.

    Args:
        out: the folder to make.
        size: pixels of the canvas's side.
        frames: of a clip.
        clips: to train on; the other splits have 1,000 each.
        captions: "digit" ("a three moving left") or "direction" ("moving left").
        seed: of digits, starts and directions.

    Raises:
        InputError: numbers out of range, something at `out` that is no earlier set of this kind, or a disk
            that takes no more.
    """
    choose("--captions", captions, tuple(CAPTIONS))
    if size <= SIDE or frames < 1 or clips < 1 or seed < 0:
        raise InputError(
            f"--size={size} must be at least {SIDE + 1} (a digit has {SIDE} pixels and needs room to move), "
            f"--frames={frames} and --clips={clips} at least 1, --seed={seed} at least 0"
        )
    words = WORDS[captions]
    length = caption_words(captions)
    writer = Writer(
        out,
        name=set_name(captions),
        fields={
            "mean": Field("uint8", (1, frames, size, size, 1)),
            "text": Field("int32", (length,)),
            "label": Field("int32", ()),
            "digit": Field("int32", ()),
            "start": Field("int32", (2,)),
            "direction": Field("int32", ()),
        },
        classes=[str(label) for label in range(10)],
        words=words,
        scale=1 / 8,
        shift=-1.0,
        made_by={
            "command": f"python prepare.py moving-digits --size={size} --frames={frames} --clips={clips} "
            f"--captions={captions} --seed={seed}",
            "source": f"sklearn.datasets.load_digits, scikit-learn {sklearn.__version__}",
            "split": f"the test digits are those of prepare.py digits; of its training digits, validation is "
            f"train_test_split(test_size={VALIDATION_DIGITS}, random_state=0, stratify=labels)",
            "motion": f"1 pixel a frame, reflected at the edges; directions {', '.join(DIRECTIONS)}",
        },
    )
    counts = dict(zip(SPLITS, (clips, VALIDATION_CLIPS, TEST_CLIPS), strict=True))
    with writer:
        for split, count in counts.items():
            images, labels = digit_images(split)
            chosen = draw(split, count, size - SIDE, seed)
            for begin in range(0, count, BATCH):
                part = Clips(*(array[begin : begin + BATCH] for array in chosen))
                writer.write(split, _records(part, images, labels, size, frames, captions))
    return writer.manifest


def _records(
    clips: Clips, images: np.ndarray, labels: np.ndarray, size: int, frames: int, captions: str
) -> Mapping[str, np.ndarray]:
    paths = path(clips.start, clips.direction, frames, size - SIDE)
    label = labels[clips.digit]
    pairs = zip(label.tolist(), clips.direction.tolist(), strict=True)
    texts = (caption(digit, direction, captions) for digit, direction in pairs)
    return {
        "mean": render(images[clips.digit], paths, size)[:, None],
        "text": np.stack([encode(text, WORDS[captions], caption_words(captions)) for text in texts]),
        "label": label,
        **clips._asdict(),
    }
