"""Clips or pictures with captions -> shards of clips and text embeddings; made by `making.prepare`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pom_jax.data.captioned import Captioned, share_out
from pom_jax.data.encoding import Encoded, Encoder
from pom_jax.data.pictures import Skipped
from pom_jax.data.recipe import Recipe, fingerprint
from pom_jax.data.text_encoder import TextEncoder
from pom_jax.data.torch_models import versions


@dataclass(frozen=True)
class Reader:
    """How files become crops: `videos.clip_reader` and `captioned_pictures.picture_reader` make one.

    Attributes:
        unit: what the files are called in messages.
        read: gives the crop of a folder, a name in it and a shape, uint8 [*shape], or why it is left out.
        settings: what decides the crops, in words.
        crop: how it is cut out, and the packages that take part: for the manifest.
    """

    unit: str
    read: Callable[[Path, str, tuple[int, ...]], np.ndarray | Skipped]
    settings: Mapping[str, str]
    crop: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What to make: files of each split, how they are read and encoded; a `making.Job`.

    Attributes:
        sources: "train" and "test"; the same files where a share of them is held out.
        recipe: the set that comes of it.
    """

    sources: dict[str, Captioned]
    reader: Reader
    encoder: Encoder
    text_encoder: TextEncoder
    recipe: Recipe

    def read(self, split: str, index: int) -> np.ndarray | Skipped:
        source = self.sources[split]
        if (reason := source.refusal(index)) is not None:
            return Skipped(source.names[index], reason)
        return self.reader.read(source.folder, source.names[index], self.encoder.crop_shape)

    def encode(self, split: str, indices: np.ndarray, crops: np.ndarray) -> Encoded:
        encoded = self.encoder(crops)
        captions = [self.title(split, int(index)) for index in indices]
        cut = sum(length > self.text_encoder.tokens for length in self.text_encoder.lengths(captions))
        return Encoded({**encoded.arrays, **self.text_encoder(captions)}, encoded.clipped, cut)

    def name(self, split: str, index: int) -> str:
        return self.sources[split].names[index]

    def title(self, split: str, index: int) -> str:
        return self.sources[split].caption(index)


def plan(
    files: Captioned,
    reader: Reader,
    encoder: Encoder,
    text_encoder: TextEncoder,
    *,
    shard: int,
    test_files: Captioned | None = None,
    test_share: float = 0.02,
    seed: int = 0,
    name: str | None = None,
    command: str = "",
) -> Job:
    """Settles which file goes into which shard, before any is read.

    Args:
        files: to train on.
        encoder: of clips, `VideoAutoencoder`; of pictures, `OneFrame`.
        shard: files of a shard; what a kill can cost.
        test_files: the held-out ones; None: `test_share` of `files`.
        seed: of the choice and of the order.
        name: of the set; that of the files by default.
        command: that makes the set; for the manifest.

    Raises:
        InputError: numbers out of range, too few files.
    """
    sources, pieces, held_out = share_out(files, test_files, test_share, shard, seed, reader.unit)
    recipe = Recipe(
        name=name or files.name,
        fields={**encoder.fields, **text_encoder.fields},
        classes=(),
        scale=encoder.scale,
        shift=encoder.shift,
        autoencoder=encoder.autoencoder,
        settings={
            "source": f"{len(files)} {reader.unit}, {files.fingerprint}",
            "held_out": held_out,
            **reader.settings,
            **encoder.settings,
            **text_encoder.settings,
            "seed": str(seed),
            f"shard_{reader.unit}": str(shard),
            "order": fingerprint(pieces),
        },
        notes={"command": command, "crop": reader.crop, **versions(*reader.packages)},
        pieces=pieces,
        text_encoder=text_encoder.name,
        unit=reader.unit,
    )
    return Job(sources, reader, encoder, text_encoder, recipe)
