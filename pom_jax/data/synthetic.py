"""Random data with the interface of a real split, for benchmarks and tests: no file, no download."""

import hashlib
from collections.abc import Sequence

import numpy as np

from pom_jax.data.manifest import Field, Manifest, Shard


class Synthetic:
    """Records that look like autoencoder moments of images: a `Source` made from the index alone.

    Record i is the same whenever and wherever it is asked for. Values are a hash of (seed, index, place),
    close to normal for `mean`, so that neither the loss nor the optimiser sees anything odd.

    Args:
      records: length of the split; as many as ImageNet has by default, 1,024 for other splits.
      image_size, channels, num_classes, views: by default those of latents of 256 x 256 images.
      seed: another seed is another data set; the test split uses its own.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        records: int | None = None,
        image_size: int = 32,
        channels: int = 4,
        num_classes: int = 1000,
        views: int = 2,
        seed: int = 0,
    ):
        if records is None:
            records = 1_281_167 if split == "train" else 1024
        shape = (views, image_size, image_size, channels)
        self.split = split
        self._records = records
        self._classes = num_classes
        about = f"synthetic {split} {records} {shape} {num_classes} {seed}"
        self._salt = np.uint64(int.from_bytes(hashlib.sha256(about.encode()).digest()[:8], "little"))
        self.manifest = Manifest(
            name="synthetic",
            fields={
                "mean": Field("float32", shape),
                "std": Field("float32", shape),
                "label": Field("int32", ()),
            },
            splits={split: (Shard("", records, 0, about),)},
            classes=tuple(str(label) for label in range(num_classes)),
            scale=1.0,
            shift=0.0,
            channel_mean=(0.0,) * channels,
            channel_std=(1.0,) * channels,
            autoencoder=None,
            made_by={"seed": str(seed)},
        )

    def __len__(self) -> int:
        return self._records

    def gather(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The records at `indices` [n]: `mean`, `std` [n, V, H, W, C] float32, `label` [n] int32."""
        index = np.asarray(indices, np.uint64)
        shape = self.manifest.fields["mean"].shape
        place = np.arange(np.prod(shape), dtype=np.uint64)
        words = _mix(_mix(index ^ self._salt)[:, None] + place)
        # The sum of four bytes is near enough to normal; it is a hash, not statistics.
        parts = words.view(np.uint8).reshape(len(index), len(place), 8)[..., :4]
        mean = (parts.sum(axis=-1, dtype=np.float32) - 510.0) / 147.8
        return {
            "mean": mean.reshape(len(index), *shape).astype(np.float32),
            "std": np.full((len(index), *shape), 0.1, np.float32),
            "label": (_mix(index + self._salt) % np.uint64(self._classes)).astype(np.int32),
        }


def _mix(x: np.ndarray) -> np.ndarray:
    """A 64-bit finaliser: every input bit changes about half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
