"""The manifest of a data set: what its shards hold, how many, their checksums, and how they were made.

A data set is a folder with ArrayRecord files and one `manifest.json`, which is written last: a folder
without it is not finished. Every record is the raw little-endian bytes of its fields, one after the other in
the order of the manifest, so all records of a set have the same size and nothing is ever unpickled.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pom_jax.errors import InputError

FORMAT = "pom_jax shards"
VERSION = 1
FILE = "manifest.json"
UNFINISHED = ".unfinished"  # ends the name of a folder in which a data set grows
DTYPES = ("uint8", "int8", "int32", "float16", "float32")


@dataclass(frozen=True)
class Field:
    """One field of a record.

    Attributes:
        dtype: by name, see DTYPES.
        shape: without a batch axis.
        scale: what a stored number counts: its value is `stored * scale`.
    """

    dtype: str
    shape: tuple[int, ...]
    scale: float = 1.0

    @property
    def bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    @property
    def stored(self) -> np.dtype:
        """The dtype as it lies in the file, little-endian on every machine."""
        return np.dtype(self.dtype).newbyteorder("<")

    def to_json(self) -> dict[str, Any]:
        # Without a scale of 1, so that sets from before there was one keep their digest.
        return {name: value for name, value in asdict(self).items() if (name, value) != ("scale", 1.0)}


@dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its name in the folder, number of records, size in bytes, checksum."""

    file: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a data set is.

    Image sets have `mean` [V, H, W, C], for latents also `std` [V, H, W, C], and `label` []. A model sees
    `(mean + std * noise) * scale + shift` in one of the V views (`pipeline.images`), the values of mean and
    std being what is stored times the scale of the field.

    Attributes:
        name: which data set this is, e.g. "digits".
        fields: name to Field, in the order of their bytes in a record.
        splits: split name to its shards.
        classes: the name of each label, in order.
        scale, shift: the affine map from stored values to the model's space.
        channel_mean, channel_std: [C] of the mapped training images (the posterior's variance included).
        autoencoder: which autoencoder made the latents; None for pixels.
        made_by: command, versions and choices that made the set; no dates, so that making it again gives the
            same bytes.
    """

    name: str
    fields: Mapping[str, Field]
    splits: Mapping[str, tuple[Shard, ...]]
    classes: tuple[str, ...]
    scale: float
    shift: float
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    autoencoder: str | None
    made_by: Mapping[str, str]

    @property
    def record_bytes(self) -> int:
        return sum(field.bytes for field in self.fields.values())

    @property
    def views(self) -> int:
        return self.fields["mean"].shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image or latent."""
        height, width, channels = self.fields["mean"].shape[1:]
        return height, width, channels

    def field_scale(self, name: str) -> float:
        return self.fields[name].scale

    def records(self, split: str) -> int:
        return sum(shard.records for shard in self.splits[split])

    @property
    def digest(self) -> str:
        """A checksum over the layout and all shards, 16 hex digits: equal digests are equal data."""
        content = {
            "fields": {name: field.to_json() for name, field in self.fields.items()},
            "affine": [self.scale, self.shift],
            "splits": {split: [shard.sha256 for shard in shards] for split, shards in self.splits.items()},
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(self)}
        content["fields"] = {name: field.to_json() for name, field in self.fields.items()}
        content["record_bytes"] = self.record_bytes
        content["records"] = {split: self.records(split) for split in self.splits}
        text = json.dumps(content, indent=2)
        # Lists of numbers and names on one line, for people; in JSON a line break is never part of a name.
        lists = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")
        return lists.sub(lambda found: "[" + re.sub(r"\n\s+", " ", found[1]) + "]", text) + "\n"


def read_manifest(folder: str | Path) -> Manifest:
    """Reads and checks the manifest of a data folder.

    Raises:
        InputError: no such folder, no manifest, not one of ours, another version, or a damaged one.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise InputError(_no_manifest(path.parent))
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}); make the data set again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(
            f'{path} is not a manifest of pom_jax: expected "format": "{FORMAT}", found {found!r}. '
            "Point data.dir to a folder made by prepare.py or by `pom_jax.data.Writer`."
        )
    if content.get("version") != VERSION:
        raise InputError(
            f"{path} has version {content.get('version')}, this pom_jax reads version {VERSION}; "
            "make the data set again with this version"
        )
    try:
        manifest = _parse(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}); make the data set again") from error
    if manifest.record_bytes != content.get("record_bytes"):
        raise InputError(
            f"{path}: the fields take {manifest.record_bytes} bytes a record, but record_bytes says "
            f"{content.get('record_bytes')}; make the data set again"
        )
    return manifest


def _no_manifest(folder: Path) -> str:
    home = folder.resolve()  # of a link: what it leads to
    growing = home.parent / f"{home.name}{UNFINISHED}"
    if growing.is_dir():
        return (
            f"data folder {folder} is not finished: {growing.name} beside it holds a part. The prepare.py "
            "command that began it goes on with it."
        )
    what = "has no manifest.json" if folder.is_dir() else "does not exist"
    return (
        f"data folder {folder} {what}: there is no finished data set in it. `python prepare.py --help` lists "
        f"all that can be made, such as the digits: `python prepare.py digits --out={folder}`; "
        "`pom_jax.data.Writer` writes your own."
    )


def _parse(content: Mapping[str, Any]) -> Manifest:
    fields = {
        name: Field(value["dtype"], tuple(value["shape"]), float(value.get("scale", 1.0)))
        for name, value in content["fields"].items()
    }
    check_fields(fields)
    check_affine(content["scale"], content["shift"])
    return Manifest(
        name=str(content["name"]),
        fields=fields,
        splits={
            split: tuple(Shard(**shard) for shard in shards) for split, shards in content["splits"].items()
        },
        classes=tuple(content["classes"]),
        scale=float(content["scale"]),
        shift=float(content["shift"]),
        channel_mean=tuple(content["channel_mean"]),
        channel_std=tuple(content["channel_std"]),
        autoencoder=content["autoencoder"],
        made_by=dict(content["made_by"]),
    )


def find_bad_record(name: str, values: np.ndarray, classes: int) -> tuple[int, str] | None:
    """The first record [n, *shape] of a field whose values cannot be used, and what is wrong with it.

    Labels must be among the classes, floating-point values finite.
    """
    if not values.size:
        return None
    if name == "label":
        good = (values >= 0) & (values < classes)
    elif values.dtype == np.float16:
        # Quicker than isfinite: infinities and NaN are the largest of the positive and of the negative.
        bits = values.view(np.uint16).reshape(len(values), -1)
        good = (bits.view(np.int16).max(axis=1) < 0x7C00) & (bits.max(axis=1) < 0xFC00)
    elif values.dtype.kind == "f":
        good = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    else:
        return None
    if good.all():
        return None
    bad = int(np.argmin(good))
    what = (
        f"label {values[bad]} is not from 0 to {classes - 1}" if name == "label" else "NaN or infinite values"
    )
    return bad, what


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_fields(fields: Mapping[str, Field]) -> None:
    """Raises InputError unless `fields` describes an image set: mean, optional std alike, and label."""
    for name, field in fields.items():
        if field.dtype not in DTYPES:
            raise InputError(f"field {name} has dtype {field.dtype}; a record can hold {', '.join(DTYPES)}")
        if not (math.isfinite(field.scale) and field.scale > 0):
            raise InputError(f"field {name} has scale {field.scale}; it must be finite and above 0")
    mean, std, label = fields.get("mean"), fields.get("std"), fields.get("label")
    if mean is None or len(mean.shape) != 4:
        raise InputError(f"field mean [views, height, width, channels] is needed, found {mean}")
    if std is not None and std.shape != mean.shape:
        raise InputError(f"field std has shape {std.shape}, field mean {mean.shape}; they must be equal")
    if label != Field("int32", ()):
        raise InputError(f"field label must be an int32 scalar, found {label}")


def check_affine(scale: float, shift: float) -> None:
    """Raises InputError unless `scale` and `shift` map stored values to finite ones."""
    if not (math.isfinite(scale) and math.isfinite(shift) and scale):
        raise InputError(f"scale and shift must be finite and scale not 0; got {scale} and {shift}")
