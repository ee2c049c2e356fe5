"""Clips with captions -> shards of latents and text embeddings; made by `making.prepare`."""

from dataclasses import dataclass

import numpy as np

from pom_jax.data.captioned import Captioned, share_out
from pom_jax.data.clips import UnusableClip, read_clip
from pom_jax.data.encoding import Encoded
from pom_jax.data.pictures import Skipped
from pom_jax.data.recipe import Recipe, fingerprint
from pom_jax.data.text_encoder import TextEncoder
from pom_jax.data.torch_models import versions
from pom_jax.data.video_autoencoder import VideoAutoencoder
from pom_jax.errors import InputError

UNIT = "clips"
SHARD_CLIPS = 256
BATCH_CLIPS = 4  # that are read before they are encoded, one after the other


@dataclass(frozen=True)
class Job:
    """What to make: clips of each split, how they are read and encoded; a `making.Job`.

    Attributes:
        sources: "train" and "test"; the same clips where a share of them is held out.
        fps, min_size: see `read_clip`.
        recipe: the set that comes of it.
    """

    sources: dict[str, Captioned]
    autoencoder: VideoAutoencoder
    text_encoder: TextEncoder
    fps: float | None
    min_size: int
    recipe: Recipe
    devices: int = 1
    compiles: bool = False

    @property
    def crop_shape(self) -> tuple[int, ...]:
        return self.autoencoder.clip_shape

    def read(self, split: str, index: int) -> np.ndarray | Skipped:
        source, (frames, height, width, _) = self.sources[split], self.crop_shape
        name = source.names[index]
        if (reason := source.refusal(index)) is not None:
            return Skipped(name, reason)
        try:
            return read_clip(
                source.folder / name, frames, (height, width), fps=self.fps, min_size=self.min_size
            )
        except UnusableClip as error:
            return Skipped(name, str(error))

    def encode(self, split: str, indices: np.ndarray, crops: np.ndarray) -> Encoded:
        moments = self.autoencoder.encode(crops[: len(indices)])
        return Encoded(
            {**moments, **self.text_encoder([self.sources[split].caption(int(index)) for index in indices])}
        )

    def decode(self, mean: np.ndarray) -> np.ndarray:
        return self.autoencoder.decode(mean)

    def title(self, split: str, index: int) -> str:
        return self.sources[split].caption(index)


def plan(
    clips: Captioned,
    autoencoder: VideoAutoencoder,
    text_encoder: TextEncoder,
    *,
    test_clips: Captioned | None = None,
    test_share: float = 0.02,
    fps: float | None = None,
    min_size: int = 0,
    seed: int = 0,
    shard_clips: int = SHARD_CLIPS,
    name: str | None = None,
    command: str = "",
) -> Job:
    """Settles which clip goes into which shard, before any is read.

    Args:
        clips: to train on.
        fps, min_size: see `read_clip`.
        test_clips: the held-out ones; None: `test_share` of `clips`.
        seed: of the choice and of the order.
        shard_clips: clips a shard; what a kill can cost.
        name: of the set; that of the clips by default.
        command: that makes the set; for the manifest.

    Raises:
        InputError: numbers out of range, too few clips.
    """
    if (fps is not None and not 0 < fps < 1000) or min_size < 0:
        raise InputError(f"--fps={fps} must be above 0 and below 1000, --min-size={min_size} at least 0")
    sources, pieces, held_out = share_out(clips, test_clips, test_share, shard_clips, seed, UNIT)
    recipe = Recipe(
        name=name or clips.name,
        fields={**autoencoder.fields, **text_encoder.fields},
        classes=(),
        scale=autoencoder.scale,
        shift=autoencoder.shift,
        autoencoder=autoencoder.name,
        settings={
            "source": f"{len(clips)} {UNIT}, {clips.fingerprint}",
            "held_out": held_out,
            "fps": "native" if fps is None else f"{fps:g}",
            "min_size": str(min_size),
            **autoencoder.settings,
            **text_encoder.settings,
            "seed": str(seed),
            "shard_clips": str(shard_clips),
            "order": fingerprint(pieces),
        },
        notes={
            "command": command,
            "crop": "scaled until each frame covers the size, then its middle; the first frames of a clip",
            **versions("av", "torch", "diffusers", "transformers"),
        },
        pieces=pieces,
        text_encoder=text_encoder.name,
        unit=UNIT,
    )
    return Job(sources, autoencoder, text_encoder, fps, min_size, recipe)
