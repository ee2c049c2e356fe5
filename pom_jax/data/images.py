"""Pictures with labels -> shards of pixels or latents; made by `making.prepare`."""

from dataclasses import dataclass

import jax
import numpy as np
import PIL

from pom_jax.data.encoding import Encoded, Encoder
from pom_jax.data.manifest import Field
from pom_jax.data.pictures import Pictures, Skipped
from pom_jax.data.recipe import Recipe, cut, fingerprint, hold_out
from pom_jax.errors import InputError

SHARD_IMAGES = 4096


@dataclass(frozen=True)
class Job:
    """What to make: pictures of each split, how they are cropped and encoded; a `making.Job`.

    Attributes:
        sources: "train" and "test"; the same pictures where a share of them is held out.
        encoder: makes the fields.
        min_size: pictures whose shorter side is below this are left out.
        recipe: the set that comes of it.
    """

    sources: dict[str, Pictures]
    encoder: Encoder
    min_size: int
    recipe: Recipe

    def read(self, split: str, index: int) -> np.ndarray | Skipped:
        return self.sources[split].crop(index, self.encoder.crop_shape[0], self.min_size)

    def encode(self, split: str, indices: np.ndarray, crops: np.ndarray) -> Encoded:
        encoded = self.encoder(crops)
        arrays = {**encoded.arrays, "label": self.sources[split].labels[indices]}
        return Encoded(arrays, encoded.clipped)

    def name(self, split: str, index: int) -> str:
        return self.sources[split].names[index]

    def title(self, split: str, index: int) -> str:
        return self.recipe.classes[self.sources[split].labels[index]]


def plan(
    pictures: Pictures,
    encoder: Encoder,
    *,
    test_pictures: Pictures | None = None,
    test_share: float = 0.02,
    min_size: int = 0,
    seed: int = 0,
    shard_images: int = SHARD_IMAGES,
    name: str | None = None,
    command: str = "",
) -> Job:
    """Settles which picture goes into which shard, before any is read.

    Args:
        pictures: to train on.
        encoder: `encoding.Pixels(size)` or `encoding.Latents(...)`.
        min_size: see `Job`.
        test_pictures: the held-out ones; None: `test_share` of each class of `pictures`.
        seed: of the choice and of the order, in which classes are mixed.
        shard_images: pictures a shard; what a kill can cost.
        name: of the set; that of the pictures by default.
        command: that makes the set; for the manifest.

    Raises:
        InputError: a number out of range, test pictures of other classes, too few pictures.
    """
    if shard_images < 1 or min_size < 0 or seed < 0:
        raise InputError(
            f"--shard-images={shard_images} must be at least 1, --min-size={min_size} and --seed={seed} at "
            "least 0"
        )
    rng = np.random.default_rng(seed)
    if test_pictures is None:
        train, test = hold_out(pictures.labels, test_share, rng)
        held_out = f"{test_share:g} of each class"
    else:
        if test_pictures.classes != pictures.classes:
            raise InputError(
                f"--test-source has {len(test_pictures.classes)} classes ({test_pictures.classes[0]}, ...), "
                f"--source {len(pictures.classes)} ({pictures.classes[0]}, ...); they must be the same"
            )
        train, test = (rng.permutation(len(found)) for found in (pictures, test_pictures))
        held_out = describe(test_pictures)
    pieces = (*cut("train", train, shard_images), *cut("test", test, shard_images))
    settings = {
        "source": describe(pictures),
        "held_out": held_out,
        "size": str(encoder.crop_shape[0]),
        "min_size": str(min_size),
        **encoder.settings,
        "seed": str(seed),
        "shard_images": str(shard_images),
        "order": fingerprint(pieces),
    }
    recipe = Recipe(
        name=name or pictures.name,
        fields={**encoder.fields, "label": Field("int32", ())},
        classes=pictures.classes,
        scale=encoder.scale,
        shift=encoder.shift,
        autoencoder=encoder.autoencoder,
        settings=settings,
        notes={
            "command": command,
            "crop": "ADM's centre crop; both mirror images",
            "pillow": PIL.__version__,
            "jax": jax.__version__,
        },
        pieces=pieces,
    )
    sources = {"train": pictures, "test": pictures if test_pictures is None else test_pictures}
    return Job(sources, encoder, min_size, recipe)


def describe(pictures: Pictures) -> str:
    """Pictures in a line that tells them from others."""
    return f"{len(pictures)} pictures, {len(pictures.classes)} classes, {pictures.fingerprint}"
