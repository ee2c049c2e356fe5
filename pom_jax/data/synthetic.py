"""Random data with the interface of a real split, for benchmarks and tests: no file, no download."""

import hashlib
from collections.abc import Sequence

import numpy as np

from pom_jax.data.manifest import Field, Manifest, Shard

IMAGES = 1_281_167  # as many as ImageNet has to train on
CLIPS = 100_000
POOL = 251  # records; a prime, so that no batch size falls into step with it
LABELS = 65_521  # a prime as well
VIEWS = 2  # as sets of latents have: an image and its mirror image


class Synthetic:
    """Records that look like autoencoder moments of images: a `Source` made from the index alone.

    Record i is the same whenever and wherever it is asked for. Values are normal and come from a pool of POOL
    records, so that reading costs as little as it can; labels are spread over all classes.

    Args:
        split: "train", "test" or any other name.
        records: length of the split; by default IMAGES or CLIPS for "train", 1,024 for other splits.
        image_size, channels, num_classes: by default those of latents of 256 x 256 ImageNet.
        clip: [T, H, W, C] of clips with texts, instead of images with labels.
        text, vocabulary: of clips: (M, words) with a vocabulary, else (M, channels of an embedding).
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
        clip: tuple[int, int, int, int] | None = None,
        text: tuple[int, int] = (0, 0),
        vocabulary: int = 0,
        seed: int = 0,
    ):
        if records is None:
            records = 1024 if split != "train" else IMAGES if clip is None else CLIPS
        shape = (VIEWS, image_size, image_size, channels) if clip is None else (1, *clip)
        self.split = split
        self._records = records
        about = f"synthetic {split} {records} {shape} {num_classes} {seed}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(about.encode()).digest()[:8], "little"))
        self._means = rng.normal(size=(POOL, *shape)).astype(np.float32)
        self._labels = rng.integers(0, num_classes, LABELS, np.int32)
        fields = {"label": Field("int32", ())}
        self._texts: dict[str, np.ndarray] = {}
        if clip is not None:
            self._texts, fields = _texts(rng, *text, vocabulary)
        self.manifest = Manifest(
            name="synthetic",
            fields={
                "mean": Field("float32", shape),
                "std": Field("float32", shape),
                **fields,
            },
            splits={split: (Shard("", records, 0, about),)},
            classes=tuple(str(label) for label in range(num_classes)),
            scale=1.0,
            shift=0.0,
            channel_mean=(0.0,) * shape[-1],
            channel_std=(1.0,) * shape[-1],
            autoencoder=None,
            made_by={"seed": str(seed)},
            words=("", *(f"word{number}" for number in range(1, vocabulary))) if vocabulary else (),
        )

    def __len__(self) -> int:
        return self._records

    def gather(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The records at `indices` [n]: `mean`, `std` [n, V, ...] float32, and `label` [n] int32 or texts."""
        index = np.asarray(indices, np.int64)
        mean = self._means[index % POOL]
        moments = {"mean": mean, "std": np.full_like(mean, 0.1)}
        if self._texts:
            return moments | {name: values[index % POOL] for name, values in self._texts.items()}
        return moments | {"label": self._labels[index % LABELS]}


def _texts(
    rng: np.random.Generator, length: int, size: int, vocabulary: int
) -> tuple[dict[str, np.ndarray], dict[str, Field]]:
    """Random texts of a pool, [POOL, M] numbers of words or [POOL, M, size] embeddings, and their fields."""
    if vocabulary:
        words = rng.integers(1, vocabulary, (POOL, length), np.int32)
        return {"text": words}, {"text": Field("int32", (length,))}
    embeddings = rng.normal(size=(POOL, length, size)).astype(np.float16)
    mask = np.arange(length) < rng.integers(1, length + 1, (POOL, 1))
    fields = {"text": Field("float16", (length, size)), "text_mask": Field("uint8", (length,))}
    return {"text": embeddings, "text_mask": mask.astype(np.uint8)}, fields
