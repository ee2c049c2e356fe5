"""The authors' chunks of ImageNet latents, as they lie: tar files of one npz a sample, and an index.json.

A sample has arr_0, the mean [C, h, w] times 0.18215; arr_1, 1000 times its deviation, scaled alike; arr_2,
the label. In int8 both are 8 times that (`quantization_scale`), cut off toward zero; in float16 they are not,
although the index says 8 there too, and the authors' reader divides by it.
Source: data/TarDataset.py and create_imagenet_tar.py of the authors' HoMM.
"""

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pom_jax.data.manifest import Field
from pom_jax.errors import InputError

STD_SCALE = 1000.0
ALIKE = 0.5  # correlation of a latent with its mirror image's, turned back; of two images it is about 0


@dataclass(frozen=True)
class Sample:
    """mean, std [h, w, C] as stored (times the scale of their field) and label."""

    mean: np.ndarray
    std: np.ndarray
    label: int


class TarLatents:
    """One split of a folder of chunks, by sample.

    Args:
        folder: with the index and its chunks.
        index: its file: index.json, or val_index.json for the held-out images.

    Raises:
        InputError: no such files, or a chunk that does not hold what the index says. A sample that cannot be
            read is told when it is its turn.
    """

    def __init__(self, folder: str | os.PathLike[str], index: str = "index.json"):
        self.folder = Path(folder)
        path = self.folder / index
        try:
            text = path.read_text()
            rows = json.loads(text)
            # The index has the paths that the files had when they were written.
            self._chunks = [(self.folder / Path(row["filename"]).name, int(row["count"])) for row in rows]
            scales = {float(row["quantization_scale"]) for row in rows}
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error}); give a folder of the authors' chunks"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is no list of filename, count and quantization_scale: {error!r}"
            ) from error
        if len(scales) != 1:
            raise InputError(f"{path} has chunks of the scales {sorted(scales)}; they must have one")
        for chunk, _ in self._chunks:
            if not chunk.is_file():
                raise InputError(f"{chunk} is missing, which {path} lists")
        self._starts = np.cumsum([0] + [count for _, count in self._chunks])
        self._places: dict[int, dict[str, tuple[int, int]]] = {}
        self._shape: tuple[int, ...] | None = None
        first = self[0]
        self._shape = first.mean.shape[2:] + first.mean.shape[:2]
        if first.mean.dtype not in (np.int8, np.float16):
            raise InputError(
                f"{self.folder} holds {first.mean.dtype}; the authors' chunks are int8 or float16"
            )
        scale = scales.pop() if first.mean.dtype == np.int8 else 1.0
        kind, shape = first.mean.dtype.name, first.mean.shape
        self.fields = {
            "mean": Field(kind, shape, 1 / scale),
            "std": Field(kind, shape, 1 / (STD_SCALE * scale)),
        }
        about = f"{text} {self.fields}".encode() + first.mean.tobytes()
        self.fingerprint = hashlib.sha256(about).hexdigest()[:16]  # other samples are not looked at

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        chunk, _ = self._chunks[number]
        name = f"sample_{index}.npz"
        places = self._index(number)
        if name not in places:
            raise InputError(f"{chunk} holds no {name}, which the index expects there")
        offset, size = places[name]
        with chunk.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                mean, std, label = (arrays[f"arr_{i}"] for i in range(3))
            if mean.ndim != 3 or mean.shape != std.shape or mean.dtype != std.dtype:
                raise ValueError(f"mean {mean.dtype} {mean.shape}, deviation {std.dtype} {std.shape}")
            if self._shape not in (None, mean.shape):
                raise ValueError(f"its shape is {mean.shape}, of the first it is {self._shape}")
            return Sample(mean.transpose(1, 2, 0), std.transpose(1, 2, 0), int(label))
        except Exception as error:  # a damaged npz makes numpy raise almost anything
            raise InputError(f"{chunk}: {name} is no sample of the authors ({error})") from error

    def _index(self, number: int) -> dict[str, tuple[int, int]]:
        """Where the samples of a chunk lie: name -> first byte, length."""
        if number not in self._places:
            chunk, count = self._chunks[number]
            try:
                with tarfile.open(chunk, "r:") as tar:
                    found = {member.name: (member.offset_data, member.size) for member in tar}
            except (OSError, tarfile.TarError) as error:
                raise InputError(f"{chunk} cannot be read as a tar: {error}") from error
            if len(found) != count:
                raise InputError(f"{chunk} holds {len(found)} samples, the index says {count}: is it whole?")
            # Samples are asked for in order: a few chunks are enough.
            self._places = {**dict(list(self._places.items())[-3:]), number: found}
        return self._places[number]


def find_pairs(source: TarLatents) -> np.ndarray | None:
    """Which samples are mirror images of each other.

    The authors write a batch of images and then the same batch mirrored; the last batch may be shorter.

    Returns:
        [N / 2, 2] indices of an image and of its mirror image, or None if there are none.
    """
    first = source[0]
    for distance in range(1, min(len(source) // 2, 4096) + 1):
        if source[distance].label != first.label or (pairs := _paired(len(source), distance)) is None:
            continue
        some = [(source[one], source[other]) for one, other in pairs[:16]]
        mirrored = [_mirrored(one, other) for one, other in some]  # but for a blank image among them
        if all(one.label == other.label for one, other in some) and np.mean(mirrored) > 0.5:
            return pairs
    return None


def _mirrored(one: Sample, other: Sample) -> bool:
    a, b = (x.astype(np.float64) for x in (one.mean, other.mean[:, ::-1]))
    a, b = (x - x.mean(axis=(0, 1)) for x in (a, b))
    return bool(np.sum(a * b) > ALIKE * np.sqrt(np.sum(a * a) * np.sum(b * b)))


def _paired(total: int, batch: int) -> np.ndarray | None:
    if total % 2:
        return None
    starts = np.arange(0, total, 2 * batch)
    sizes = np.minimum(batch, (total - starts) // 2)
    originals = np.concatenate([start + np.arange(size) for start, size in zip(starts, sizes, strict=True)])
    return np.stack([originals, originals + np.repeat(sizes, sizes)], axis=1)
