"""The real images of a data set, as prepare.py makes it, to compare samples with."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pom_jax.data import Records, manifest
from pom_jax.errors import InputError
from pom_jax.evaluation.images import Images
from pom_jax.sampling.decode import load_decoder
from pom_jax.training.preview import to_pixels
from pom_jax.vae.files import PathLike, weights_sha256

SPLIT = "train"  # what the field's references are made of


def is_data_set(source: object) -> bool:
    """Whether this is a folder of shards."""
    return isinstance(source, (str, Path)) and (Path(source) / manifest.FILE).is_file()


def open_shards(folder: str | Path, autoencoder: PathLike | None = None) -> Images:
    """The training images of a data set as they are, without their mirror images.

    Pixels are made RGB; latents are the mean of their posterior, mapped to the model's space by the manifest
    and decoded as what a model draws there.

    Args:
        folder: written by prepare.py.
        autoencoder: folder of the one that the latents are of, in diffusers' format.

    Raises:
        InputError: no data set or a damaged one, latents without their autoencoder, or with another.
    """
    source = Records(folder, SPLIT)
    about = source.manifest
    height, width, channels = about.image_shape
    name = f"{folder} ({about.name}, split {SPLIT}, data checksum {about.digest}"
    scale = about.fields["mean"].scale

    def stored(batch: int) -> Iterator[np.ndarray]:
        for start in range(0, len(source), batch):
            found = source.gather(np.arange(start, min(start + batch, len(source))))
            yield found["mean"][:, 0].astype(np.float32) * scale * about.scale + about.shift

    if about.is_pixels:

        def pixels(batch: int) -> Iterator[np.ndarray]:
            for mean in stored(batch):
                yield rgb(to_pixels(mean))

        return Images(f"{name})", (len(source), height, width, 3), pixels)

    if autoencoder is None:
        raise InputError(
            f"{folder} holds latents of {height} x {width} x {channels}: give the autoencoder they were made "
            "with, --autoencoder=DIR, or a reference of pictures"
        )
    sha256 = weights_sha256(autoencoder)
    if about.autoencoder is not None and "sha256" in about.autoencoder and sha256 not in about.autoencoder:
        raise InputError(
            f"{folder} holds latents of {about.autoencoder}, and the weights of {autoencoder} have sha256 "
            f"{sha256}: give the autoencoder they were made with"
        )
    decoder = load_decoder(autoencoder, channels)

    def decoded(batch: int) -> Iterator[np.ndarray]:
        for mean in stored(batch):
            yield decoder(mean)

    times = decoder.model.config.downsampling
    shape = (len(source), height * times, width * times, 3)
    return Images(f"{name}, decoded with the autoencoder of sha256 {sha256})", shape, decoded)


def rgb(pixels: np.ndarray) -> np.ndarray:
    """[..., H, W, 1 or 3] -> [..., H, W, 3]."""
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))
