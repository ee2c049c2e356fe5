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

from pom_jax.data.fields import Field, check_fields
from pom_jax.errors import InputError

FORMAT = "pom_jax shards"
VERSION = 1
FILE = "manifest.json"
ADVICE = (
    "`python prepare.py --help` lists all that can be made, such as the digits: `python prepare.py digits`; "
    "`pom_jax.data.Writer` writes your own"
)
UNFINISHED = ".unfinished"  # ends the name of a folder in which a data set grows


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

    Sets of images have `mean` [V, H, W, C], sets of clips `mean` [V, T, H, W, C]; for latents also `std`,
    alike. A model sees `(mean + std * noise) * scale + shift` in one of the V views (`pipeline.images`), the
    values of mean and std being what is stored times the scale of the field.

    Each has its class `label` [], or its caption, or both: `text` [M] int32, numbers of `words` (0: no word),
    or `text` [M, D] float16, an encoder's embeddings, with `text_mask` [M] uint8, 1 where there is a token.
    Fields of other names are not for models but for scores.

    Attributes:
        name: which data set this is, e.g. "digits".
        fields: name to Field, in the order of their bytes in a record.
        splits: split name to its shards.
        classes: the name of each label, in order; none without labels.
        scale, shift: the affine map from stored values to the model's space.
        channel_mean, channel_std: [C] of the mapped training images (the posterior's variance included).
        autoencoder: which autoencoder made the latents; None for pixels.
        made_by: command, versions and choices that made the set; no dates, so that making it again gives the
            same bytes.
        words: the word of each number in `text`, the first one "".
        text_encoder: which encoder made the embeddings in `text`.
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
    words: tuple[str, ...] = ()
    text_encoder: str | None = None

    @property
    def record_bytes(self) -> int:
        return sum(field.bytes for field in self.fields.values())

    @property
    def views(self) -> int:
        return self.fields["mean"].shape[0]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(H, W, C) of one image, (T, H, W, C) of one clip; of pixels or latents."""
        return self.fields["mean"].shape[1:]

    @property
    def is_video(self) -> bool:
        """Whether samples are clips, be it of one frame."""
        return len(self.sample_shape) == 4

    @property
    def is_pixels(self) -> bool:
        """Whether samples are pixels, grey or RGB, and not latents, which may have three channels too."""
        return self.autoencoder is None and self.sample_shape[-1] in (1, 3)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image or latent.

        Raises:
            InputError: a set of clips.
        """
        if self.is_video:
            raise InputError(
                f"data set {self.name} holds clips of {self.sample_shape}, frames first, where images are "
                "needed; change the model or data.dir"
            )
        height, width, channels = self.sample_shape
        return height, width, channels

    def field_scale(self, name: str) -> float:
        return self.fields[name].scale

    def records(self, split: str) -> int:
        return sum(shard.records for shard in self.splits[split])

    @property
    def digest(self) -> str:
        """A checksum over the layout and all shards, 16 hex digits: equal digests are equal data."""
        content: dict[str, Any] = {
            "fields": {name: field.to_json() for name, field in self.fields.items()},
            "affine": [self.scale, self.shift],
            "splits": {split: [shard.sha256 for shard in shards] for split, shards in self.splits.items()},
        }
        if self.words:
            content["words"] = self.words
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def encoding(self) -> dict[str, Any]:
        """What samples of this set are decoded with, and prompts embedded: a run keeps it as data.encoding.

        For latents `scale` and `shift`, `autoencoder` and, of clips that were encoded in chunks,
        `chunk_frames`; `text_encoder`. What the set does not tell is left out.
        """
        found: dict[str, Any] = {"autoencoder": self.autoencoder, "text_encoder": self.text_encoder}
        if not self.is_pixels:
            chunk = self.made_by.get("chunk_frames", "")
            found |= {"scale": self.scale, "shift": self.shift}
            found["chunk_frames"] = int(chunk) if chunk.isdecimal() else None
        return {name: value for name, value in found.items() if value is not None}

    def to_json(self) -> str:
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(self)}
        for name in ("words", "text_encoder"):
            if not content[name]:  # as in sets from before there were captions
                del content[name]
        content["fields"] = {name: field.to_json() for name, field in self.fields.items()}
        content["record_bytes"] = self.record_bytes
        content["records"] = {split: self.records(split) for split in self.splits}
        text = json.dumps(content, indent=2)
        # Lists of numbers and names on one line, for people; in JSON a line break is never part of a name.
        lists = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")
        return lists.sub(lambda found: "[" + re.sub(r"\n\s+", " ", found[1]) + "]", text) + "\n"


def read_manifest(folder: str | Path, advice: str = ADVICE) -> Manifest:
    """Reads and checks the manifest of a data folder.

    Args:
        folder: made by prepare.py or `Writer`.
        advice: what to do if there is no data set, for the message.

    Raises:
        InputError: no such folder, no manifest, not one of ours, another version, or a damaged one.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise InputError(_no_manifest(path.parent, advice))
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


def growing(folder: Path) -> Path:
    """Where `prepare.py` makes the set of a folder until it is whole."""
    home = folder.resolve()  # of a link: what it leads to
    return home.parent / f"{home.name}{UNFINISHED}"


def _no_manifest(folder: Path, advice: str) -> str:
    part = growing(folder)
    if part.is_dir():
        return (
            f"data folder {folder} is not finished: {part.name} beside it holds a part. The prepare.py "
            "command that began it goes on with it."
        )
    what = "has no manifest.json" if folder.is_dir() else "does not exist"
    return f"data folder {folder} {what}: there is no finished data set in it. {advice}"


def _parse(content: Mapping[str, Any]) -> Manifest:
    fields = {
        name: Field(value["dtype"], tuple(value["shape"]), float(value.get("scale", 1.0)))
        for name, value in content["fields"].items()
    }
    words = tuple(content.get("words", ()))
    check_fields(fields, words)
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
        words=words,
        text_encoder=content.get("text_encoder"),
    )


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_affine(scale: float, shift: float) -> None:
    """Raises InputError unless `scale` and `shift` map stored values to finite ones."""
    if not (math.isfinite(scale) and math.isfinite(shift) and scale):
        raise InputError(f"scale and shift must be finite and scale not 0; got {scale} and {shift}")
