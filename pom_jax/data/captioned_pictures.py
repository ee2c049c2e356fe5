"""Pictures with captions -> shards of clips of one frame, for text to image; made by `making.prepare`."""

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np
import PIL
from PIL import Image

from pom_jax.data.captioned import Captioned, share_out
from pom_jax.data.encoding import Encoded, Encoder
from pom_jax.data.pictures import UNREADABLE, Skipped, centre_crop
from pom_jax.data.recipe import Recipe, fingerprint
from pom_jax.data.text_encoder import TextEncoder
from pom_jax.data.torch_models import versions
from pom_jax.errors import InputError

UNIT = "pictures"
SHARD_PICTURES = 4096


@dataclass(frozen=True)
class Job:
    """What to make: pictures of each split, how they are cropped and encoded; a `making.Job`.

    Attributes:
        sources: "train" and "test"; the same pictures where a share of them is held out.
        size: pixels of a crop's side.
        min_size: pictures whose shorter side is below this are left out.
        recipe: the set that comes of it.
    """

    sources: dict[str, Captioned]
    encoder: Encoder
    text_encoder: TextEncoder
    size: int
    min_size: int
    recipe: Recipe

    @property
    def crop_shape(self) -> tuple[int, ...]:
        return self.size, self.size, 3

    @property
    def devices(self) -> int:
        return jax.local_device_count()

    @property
    def compiles(self) -> bool:
        return self.encoder.autoencoder is not None

    def read(self, split: str, index: int) -> np.ndarray | Skipped:
        source = self.sources[split]
        name = source.names[index]
        if (reason := source.refusal(index)) is not None:
            return Skipped(name, reason)
        try:
            with Image.open(source.folder / name) as picture:
                if min(picture.size) < self.min_size:
                    return Skipped(name)
                return centre_crop(picture, self.size)
        except UNREADABLE as error:
            return Skipped(name, f"{type(error).__name__}: {error}")

    def encode(self, split: str, indices: np.ndarray, crops: np.ndarray) -> Encoded:
        encoded = self.encoder(crops)
        clips = {name: array[:, :, None] for name, array in encoded.arrays.items()}
        texts = self.text_encoder([self.sources[split].caption(int(index)) for index in indices])
        return Encoded({**clips, **texts}, encoded.clipped)

    def decode(self, mean: np.ndarray) -> np.ndarray:
        return self.encoder.decode(mean[:, 0])

    def title(self, split: str, index: int) -> str:
        return self.sources[split].caption(index)


def plan(
    pictures: Captioned,
    encoder: Encoder,
    text_encoder: TextEncoder,
    size: int,
    *,
    test_pictures: Captioned | None = None,
    test_share: float = 0.02,
    min_size: int = 0,
    seed: int = 0,
    shard_pictures: int = SHARD_PICTURES,
    name: str | None = None,
    command: str = "",
) -> Job:
    """Settles which picture goes into which shard, before any is read.

    Args:
        pictures: to train on.
        encoder: `encoding.Pixels(size, ...)` or `encoding.Latents(...)`.
        size, min_size: see `Job`.
        test_pictures: the held-out ones; None: `test_share` of `pictures`.
        seed: of the choice and of the order.
        shard_pictures: pictures a shard; what a kill can cost.
        name: of the set; that of the pictures by default.
        command: that makes the set; for the manifest.

    Raises:
        InputError: numbers out of range, too few pictures.
    """
    if size < 1 or min_size < 0:
        raise InputError(f"--size={size} must be at least 1, --min-size={min_size} at least 0")
    sources, pieces, held_out = share_out(pictures, test_pictures, test_share, shard_pictures, seed, UNIT)
    # Text to image is text to video of one frame.
    fields = {
        name: dataclasses.replace(field, shape=(field.shape[0], 1, *field.shape[1:]))
        for name, field in encoder.fields.items()
    }
    recipe = Recipe(
        name=name or pictures.name,
        fields={**fields, **text_encoder.fields},
        classes=(),
        scale=encoder.scale,
        shift=encoder.shift,
        autoencoder=encoder.autoencoder,
        settings={
            "source": f"{len(pictures)} {UNIT}, {pictures.fingerprint}",
            "held_out": held_out,
            "size": str(size),
            "min_size": str(min_size),
            "views": str(fields["mean"].shape[0]),
            **encoder.settings,
            **text_encoder.settings,
            "seed": str(seed),
            "shard_pictures": str(shard_pictures),
            "order": fingerprint(pieces),
        },
        notes={
            "command": command,
            "crop": "ADM's centre crop",
            "pillow": PIL.__version__,
            "jax": jax.__version__,
            **versions("torch", "transformers"),
        },
        pieces=pieces,
        text_encoder=text_encoder.name,
    )
    return Job(sources, encoder, text_encoder, size, min_size, recipe)
