"""Writes a data set: ArrayRecord shards and the manifest, in a folder that appears only when it is whole."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from pom_jax.data.fields import Field, check_fields
from pom_jax.data.manifest import FILE, Manifest, Shard, check_affine, read_manifest
from pom_jax.data.shards import DiskError, Moments, ShardFile, check_batch, free_space, to_records
from pom_jax.errors import InputError


class Writer:
    """Writes batches of records to `out`; a context manager.

    Everything goes to a hidden folder beside `out`, which is renamed to `out` at the end of the `with` block
    and removed if the block raises. An earlier data set of the same name at `out` is replaced then; anything
    else there is refused at once.

        with Writer("data/digits", name="digits", fields=..., classes=..., scale=0.125, shift=-1.0) as writer:
            writer.write("train", {"mean": mean, "label": label})
        print(writer.manifest.digest)

    Args:
        out: the folder to make.
        name, fields, classes, scale, shift, autoencoder, made_by, words, text_encoder: see `Manifest`.
        shard_bytes: a shard is closed when its records take this many bytes.

    Raises:
        InputError: a foreign folder at `out`, a batch that does not fit the fields (see `check_batch`), no
            training or no test split, or a disk that takes no more.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        name: str,
        fields: Mapping[str, Field],
        classes: Sequence[str],
        scale: float,
        shift: float,
        autoencoder: str | None = None,
        made_by: Mapping[str, str] | None = None,
        words: Sequence[str] = (),
        text_encoder: str | None = None,
        shard_bytes: int = 256 * 2**20,
    ):
        check_fields(fields, words)
        check_affine(scale, shift)
        self.out = Path(out)
        self._home = self.out.resolve()  # a link may lead to another disk
        self.fields = dict(fields)
        self._manifest: Manifest | None = None
        self._unfinished: Path | None = None  # the folder of the `with` block
        self._about = {
            "name": name,
            "classes": tuple(classes),
            "scale": scale,
            "shift": shift,
            "autoencoder": autoencoder,
            "made_by": dict(made_by or {}),
            "words": tuple(words),
            "text_encoder": text_encoder,
        }
        self._shard_bytes = shard_bytes
        self._shards: dict[str, list[Shard]] = {}
        self._open: dict[str, ShardFile] = {}
        self._moments = Moments(fields["mean"].shape[-1])  # of the training split
        check_replaceable(self.out, name)

    def __enter__(self) -> "Writer":
        try:
            self._home.parent.mkdir(parents=True, exist_ok=True)
            self._unfinished = Path(
                tempfile.mkdtemp(prefix=f".{self._home.name}.writing-", dir=self._home.parent)
            )
        except OSError as error:
            raise InputError(f"cannot write beside {self.out}: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for file in self._open.values():
                file.abandon()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._unfinished = None

    @property
    def _folder(self) -> Path:
        if self._unfinished is None:
            raise InputError(
                f"nothing can be written to {self.out} outside of a `with` block: "
                'with Writer(...) as writer: writer.write("train", {...})'
            )
        return self._unfinished

    @property
    def manifest(self) -> Manifest:
        """What was written, once the `with` block has ended."""
        if self._manifest is None:
            raise InputError(f"{self.out} is not finished: its manifest exists after the `with` block")
        return self._manifest

    def write(self, split: str, batch: Mapping[str, np.ndarray]) -> None:
        """Appends records.

        Args:
            split: "train" and "test" (every data set has both) or any other name.
            batch: `{field: [n, *shape]}`, each of the field's dtype.

        Raises:
            InputError: see the class.
        """
        _ = self._folder  # refused outside of a `with` block, before anything is counted
        classes, words = len(self._about["classes"]), len(self._about["words"])
        arrays = check_batch(self.fields, batch, classes, split, self._count(split), words)
        if split == "train":
            self._moments.add(self.fields, arrays)
        try:
            for record in to_records(arrays):
                self._append(split, record.tobytes())
        except DiskError as error:
            raise self._disk_error(error) from error

    def _count(self, split: str) -> int:
        closed = sum(shard.records for shard in self._shards.get(split, ()))
        return closed + (self._open[split].records if split in self._open else 0)

    def _append(self, split: str, record: bytes) -> None:
        if split not in self._open:
            name = f"{split}-{len(self._shards.setdefault(split, [])):05d}.array_record"
            self._open[split] = ShardFile(self._folder / name)
        file = self._open[split]
        file.append(record)
        if file.records * len(record) >= self._shard_bytes:
            self._close(split)

    def _close(self, split: str) -> None:
        self._shards[split].append(self._open.pop(split).close())

    def _disk_error(self, error: Exception) -> InputError:
        return InputError(
            f"writing {self.out} failed, nothing was left behind: {error}. "
            f"{free_space(self._home.parent)}; make room or choose another folder."
        )

    def _finish(self) -> None:
        try:
            for split in list(self._open):
                self._close(split)
        except DiskError as error:
            raise self._disk_error(error) from error
        if not self._moments.pixels:
            raise InputError(
                f"no record was written to split train of {self.out}; a data set needs a training split"
            )
        if not self._shards.get("test"):
            raise InputError(
                f"no record was written to split test of {self.out}, which training measures its loss on: "
                'hold out a few images, such as one in twenty, and write them with write("test", ...)'
            )
        self._manifest = Manifest(
            **self._about,
            fields=self.fields,
            splits={split: tuple(shards) for split, shards in self._shards.items()},
            **self._moments.mapped(self._about["scale"], self._about["shift"]),
        )
        try:
            (self._folder / FILE).write_text(self._manifest.to_json())
            self._folder.chmod(0o755)  # mkdtemp makes folders that only their owner can read
            self._replace()
        except OSError as error:
            raise self._disk_error(error) from error

    def _replace(self) -> None:
        """Puts the folder in its place; an earlier data set is whole until then."""
        replaced = None
        if self._home.exists():
            check_replaceable(self.out, self._about["name"])
            replaced = self._home.rename(self._folder.with_name(f"{self._folder.name}-replaced"))
        self._folder.rename(self._home)
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)


def check_replaceable(out: str | Path, name: str) -> None:
    """Raises InputError if something is at `out` that is not a data set of this name and nothing else."""
    out = Path(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    refusal = f"{out} exists and is not a data set named {name}"
    if not out.is_dir():
        raise InputError(f"{refusal} (it is a file); choose another folder")
    try:
        manifest = read_manifest(out)
    except InputError as error:
        raise InputError(
            f"{refusal}; nothing was changed. Choose another folder or remove it yourself."
        ) from error
    if manifest.name != name:
        raise InputError(
            f"{refusal}: its manifest says {manifest.name}; nothing was changed. Choose another folder."
        )
    ours = {FILE} | {shard.file for shards in manifest.splits.values() for shard in shards}
    if foreign := sorted({path.name for path in out.iterdir()} - ours):
        raise InputError(
            f"{refusal} and nothing else: it also holds {', '.join(foreign[:3])}; nothing was changed. "
            "Move that away."
        )
