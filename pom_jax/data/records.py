"""Reads a split of a data set: every check before the first batch, then whole batches by index."""

import resource
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from pom_jax.data.fields import find_bad_record
from pom_jax.data.manifest import Manifest, Shard, read_manifest, sha256
from pom_jax.data.shard_reader import RANDOM_ACCESS, ShardReader
from pom_jax.errors import InputError

SMALL = 64 * 2**20  # bytes: sets up to this size are always verified, and read and kept at once
FILES = 256  # that a process may open besides shards


class Records:
    """One split of a data folder as a `Source`.

    Args:
        folder: the data set, made by prepare.py or `Writer`.
        split: e.g. "train" or "test".
        verify: compare the checksum of every shard before the first batch. Sets of at most 64 MB always are;
            for large ones the file sizes are compared unless this is asked for.
        memory: bytes; a split of at most so many stays in memory as far as it was read, and needs no file
            then. Small ones always do.

    Raises:
        InputError: no data set or split; a shard that is missing, cut, changed or of another record size;
            more shards than files that may be open; in a small set, what `gather` refuses.
    """

    def __init__(self, folder: str | Path, split: str, *, verify: bool = False, memory: float = 0):
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder)
        self.split = split
        if split not in self.manifest.splits:
            raise InputError(f"{folder} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
        self._shards = self.manifest.splits[split]
        self._starts = np.cumsum([0] + [shard.records for shard in self._shards])
        if not len(self):
            raise InputError(
                f"split {split} of {folder} is empty; make the data set again with records in it"
            )
        size = len(self) * self.manifest.record_bytes
        small = size <= SMALL
        for shard in self._shards:
            self._check(shard, checksum=verify or small)
        allow_files(2 * len(self._shards), self._where())
        paths = [self.folder / shard.file for shard in self._shards]
        counts = [shard.records for shard in self._shards]
        keep = small or size <= memory
        self._reader = ShardReader(paths, counts, self.manifest.record_bytes, keep)
        if small:
            self.gather(np.arange(len(self)))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The records at `indices` [n], in that order, as `{field: [n, *shape]}`.

        Raises:
            InputError: an index outside the split, a shard that cannot be read, a value that is not finite,
                or a label outside the classes.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise InputError(
                f"records {indices.min()} to {indices.max()} asked of {len(self)} in {self._where()}"
            )
        rows, fresh = self._reader.read(indices)
        batch, start = {}, 0
        for name, field in self.manifest.fields.items():
            # A view of the rows where the bytes of the field are aligned in them: nothing is copied.
            column = rows[:, start : start + field.bytes]
            if start % np.dtype(field.dtype).itemsize:
                column = column.copy()
            batch[name] = (
                column.view(field.stored).reshape(len(rows), *field.shape).astype(field.dtype, copy=False)
            )
            start += field.bytes
        limits = len(self.manifest.classes), len(self.manifest.words)
        for name, values in batch.items():
            # What was found good once is still the same.
            new = values if fresh.all() else values[fresh]
            found = find_bad_record(name, new, *limits)
            if found is not None:
                place, what = found
                self._reader.forget(indices[fresh])
                raise InputError(
                    f"record {indices[fresh][place]} of {self._where()}, field {name}: {what}; "
                    "make the data set again"
                )
        return batch

    def _check(self, shard: Shard, *, checksum: bool) -> None:
        path = self.folder / shard.file
        again = f"remove {self.folder} and make the data set again"
        if command := self.manifest.made_by.get("command"):
            again += f" (`{command} --out={shlex.quote(str(self.folder))}`)"
        if not path.is_file():
            raise InputError(f"shard {path} is missing; {again}")
        if (size := path.stat().st_size) != shard.bytes:
            raise InputError(f"shard {path} has {size} bytes, the manifest says {shard.bytes}; {again}")
        if checksum and (found := sha256(path)) != shard.sha256:
            raise InputError(
                f"shard {path} has SHA-256 {found[:16]}..., the manifest says {shard.sha256[:16]}...: "
                f"its content was changed; {again}"
            )
        try:
            reader = ArrayRecordReader(str(path), RANDOM_ACCESS)
            records = reader.num_records()
            length = len(reader.read([0])[0]) if records else self.manifest.record_bytes
            reader.close()
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                f"shard {path} cannot be read ({str(error).splitlines()[0]}); {again}"
            ) from error
        if records != shard.records:
            raise InputError(
                f"shard {path} has {records} records, the manifest says {shard.records}; {again}"
            )
        if length != self.manifest.record_bytes:
            raise InputError(
                f"shard {path} has records of {length} bytes, the manifest's fields take "
                f"{self.manifest.record_bytes}; {again}"
            )

    def _where(self) -> str:
        return f"split {self.split} in {self.folder}"


def allow_files(number: int, what: str) -> None:
    """Lets this process open so many files and others besides, as far as the system does; they stay open.

    Raises:
        InputError: the system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    if most < needed:
        raise InputError(
            f"{what} needs {number} open files, two a shard, and the system allows {most}: raise that "
            "(`ulimit -n`), or make the data set again with larger shards"
        )
    # With room for other splits.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4 * needed), hard))
