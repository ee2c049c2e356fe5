"""What a data set is made of, down to the records of each shard, before any of them is made."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pom_jax.data.manifest import Field
from pom_jax.data.pictures import Skipped
from pom_jax.errors import InputError


@dataclass(frozen=True)
class Piece:
    """The records of one shard: indices into the source of its split."""

    split: str
    number: int
    indices: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


@dataclass(frozen=True)
class Recipe:
    """All that decides what a data set will hold.

    Attributes:
        name, fields, classes, scale, shift, autoencoder, words, text_encoder: see `Manifest`.
        settings: what must not change between two starts, in words; they become part of `made_by`.
        notes: further entries of `made_by`.
        pieces: all shards.
        unit: what its samples are called in messages.
    """

    name: str
    fields: Mapping[str, Field]
    classes: tuple[str, ...]
    scale: float
    shift: float
    autoencoder: str | None
    settings: Mapping[str, str]
    notes: Mapping[str, str]
    pieces: tuple[Piece, ...]
    words: tuple[str, ...] = ()
    text_encoder: str | None = None
    unit: str = "pictures"


@dataclass(frozen=True)
class Batch:
    """Some records of a piece, in order; the last batch of each piece says so.

    Attributes:
        arrays: `{field: [n, *shape]}`, of numpy or on a device.
        count: how many of the n records count; the others are padding.
        clipped: [n] how many numbers of each record lay beyond what its field can hold.
        names: index -> file of what each record was made of, in order; with them, a record that is not finite
            is left out. Empty: it is an error.
        left_out: index -> why, of what was left out since the batch before.
        cut: captions that were cut.
    """

    piece: Piece
    arrays: Mapping[str, Any]
    count: int
    clipped: Any = None
    names: Mapping[int, str] = field(default_factory=dict)
    left_out: Mapping[int, Skipped] = field(default_factory=dict)
    cut: int = 0
    last: bool = False


def hold_out(
    labels: np.ndarray, share: float, rng: np.random.Generator, unit: str = "pictures"
) -> tuple[np.ndarray, np.ndarray]:
    """A random choice of records to train on and to hold out, evenly over the classes, each in random order.

    Args:
        labels: [N].
        share: of each class that is held out.
        unit: what they are called in messages.

    Returns:
        Indices of the records to train on, and of those held out.

    Raises:
        InputError: a share that leaves nothing on one side.
    """
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    # A step up of this staircase every 1 / share places: within one of the share in every class.
    stairs = (
        np.floor(np.arange(len(labels) + 1) * share + 0.5) if 0 < share < 1 else np.zeros(len(labels) + 1)
    )
    held = np.diff(stairs) > 0
    if not 0 < held.sum() < len(labels):
        raise InputError(
            f"--test-share={share:g} of {len(labels)} {unit} holds out {held.sum()}; some must be left on "
            f"both sides: give a share between {1 / len(labels):.1g} and 1, or held-out {unit} of their "
            "own (--test-source=PATH; of latents, val_index.json)"
        )
    return rng.permutation(by_class[~held]), rng.permutation(by_class[held])


def cut(split: str, indices: np.ndarray, records: int) -> tuple[Piece, ...]:
    """The pieces of a split, of so many records each."""
    starts = range(0, len(indices), records)
    return tuple(Piece(split, n, indices[start : start + records]) for n, start in enumerate(starts))


def fingerprint(pieces: Sequence[Piece]) -> str:
    """A checksum of the order of all records, for the settings."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(f"{piece.name} {len(piece.indices)}".encode() + piece.indices.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def check_settings(
    where: str, verb: str, found: Mapping[str, str], wanted: Mapping[str, str], way: str
) -> None:
    """Raises InputError that names each setting that differs."""
    different = [
        f"{name} = {found.get(name, 'nothing')}, now {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if different:
        raise InputError(f"{where} {verb} with {'; '.join(different)}. {way[0].upper()}{way[1:]}.")
