"""The authors' chunks of latents -> shards, number by number as they are stored."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pom_jax.data.manifest import Field, Manifest
from pom_jax.data.progress import PrepareProgress
from pom_jax.data.recipe import Batch, Piece, Recipe, cut, fingerprint, hold_out
from pom_jax.data.tar_latents import TarLatents, find_pairs
from pom_jax.data.unfinished import Unfinished, find_finished
from pom_jax.errors import InputError

BATCH = 64
SHARD_RECORDS = 4096
AUTOENCODER = "stabilityai/sd-vae-ft-ema, scaled by 0.18215 (as the authors' tool does it; not recorded)"


@dataclass(frozen=True)
class Split:
    """Samples and the records to make of them: `views` [N, V] are the samples of each record."""

    source: TarLatents
    views: np.ndarray


def prepare_latents(
    source: str | os.PathLike[str],
    out: str | Path,
    *,
    classes: int = 1000,
    test_share: float = 0.02,
    seed: int = 0,
    command: str = "",
    progress: PrepareProgress | None = None,
) -> Manifest | None:
    """Imports a folder of chunks; what a kill has interrupted goes on.

    Two samples that are an image and its mirror image become the two views of a record. Numbers are kept,
    int8 or float16, with their scale in the manifest, so that float16 comes out right, although the authors'
    index says it is 8 times too large. Latents are theirs times 0.18215: the manifest's scale is 1.

    Args:
        source: folder with index.json and its chunks; val_index.json is the test split, if there.
        out: the folder to make.
        classes: how many labels there are.
        test_share, seed: what is held out of the training images where there is no val_index.json.
        command: that makes the set; for the manifest.
        progress: is told how far it has come.

    Raises:
        InputError: chunks that are not the authors', two samples of a pair with different labels, a label
            outside the classes; see `Unfinished` too.
    """
    progress = progress or PrepareProgress()
    splits, pieces = _open(Path(source), test_share, seed)
    train = splits["train"]
    views = train.views.shape[1]
    progress.say(
        f"{len(train.source):,} samples of {train.source.fields['mean'].dtype}, "
        + ("every second one the mirror image of another" if views == 2 else "no mirror images among them")
    )
    recipe = Recipe(
        name=Path(source).resolve().name,
        fields={
            **{
                name: Field(field.dtype, (views, *field.shape), field.scale)
                for name, field in train.source.fields.items()
            },
            "label": Field("int32", ()),
        },
        classes=tuple(str(label) for label in range(classes)),
        scale=1.0,
        shift=0.0,
        autoencoder=AUTOENCODER,
        settings={
            "source": f"{len(train.source)} samples of {train.source.fingerprint}, {views} views a record",
            "held_out": f"{len(splits['test'].views)} records of {splits['test'].source.fingerprint}",
            "classes": str(classes),
            "seed": str(seed),
            "order": fingerprint(pieces),
        },
        notes={"command": command},
        pieces=pieces,
    )
    if (manifest := find_finished(out, recipe)) is not None:
        progress.say(f"{out} is there already, made with the same settings")
        return manifest
    with Unfinished(out, recipe) as unfinished:
        missing = unfinished.missing()
        progress.begin(sum(len(piece.indices) for piece in missing))
        for piece in missing:
            for batch in _batches(splits[piece.split], piece):
                unfinished.write(batch)
                progress.advance(batch.count)
        return unfinished.finish()


def _open(folder: Path, test_share: float, seed: int) -> tuple[Mapping[str, Split], tuple[Piece, ...]]:
    train = TarLatents(folder)
    views = _views(train)
    if (folder / "val_index.json").is_file():
        test = TarLatents(folder, "val_index.json")
        splits = {"train": Split(train, views), "test": Split(test, _views(test))}
        if test.fields != train.fields or splits["test"].views.shape[1] != views.shape[1]:
            raise InputError(f"the samples of {folder}/val_index.json are not stored as those of index.json")
        parts = {split: np.arange(len(found.views)) for split, found in splits.items()}
    else:
        splits = {split: Split(train, views) for split in ("train", "test")}
        held = hold_out(np.zeros(len(views), np.int32), test_share, np.random.default_rng(seed))
        # The authors shuffled the images already; in their order, every chunk is read once.
        parts = {split: np.sort(indices) for split, indices in zip(splits, held, strict=True)}
    pieces = [piece for split, indices in parts.items() for piece in cut(split, indices, SHARD_RECORDS)]
    return splits, tuple(pieces)


def _views(source: TarLatents) -> np.ndarray:
    pairs = find_pairs(source)
    return np.arange(len(source))[:, None] if pairs is None else pairs


def _batches(split: Split, piece: Piece) -> Iterator[Batch]:
    for start in range(0, len(piece.indices), BATCH):
        views = split.views[piece.indices[start : start + BATCH]]
        records = [[split.source[int(index)] for index in row] for row in views]
        for row, record in zip(views, records, strict=True):
            if len({sample.label for sample in record}) > 1:
                raise InputError(
                    f"samples {row.tolist()} of {split.source.folder} should be an image and its mirror "
                    f"image, but their labels are {[sample.label for sample in record]}"
                )
        arrays = {
            "mean": np.array([[sample.mean for sample in record] for record in records]),
            "std": np.array([[sample.std for sample in record] for record in records]),
            "label": np.array([record[0].label for record in records], np.int32),
        }
        yield Batch(piece, arrays, count=len(views), last=start + BATCH >= len(piece.indices))
