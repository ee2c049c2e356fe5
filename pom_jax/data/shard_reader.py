"""Random records of a split, quickly, and never a changed one."""

import itertools
import os
import threading
from collections.abc import Sequence
from io import RawIOBase
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from pom_jax.errors import InputError

RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"

# Where ArrayRecord puts the records of an uncompressed shard of one a group. Source: the format of Riegeli's
# files: blocks of 64 KiB, each with a header of 24 bytes; the rest are chunks with a header of 40 bytes, an
# empty one at first. The chunk of one record has two bytes and the record's length as a varint before it.
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 2**16, 24, 40
CONTENT = BLOCK - BLOCK_HEADER  # bytes of a block

GROUP = 16  # records that are added up while they are still in the cache


class ShardReader:
    """Reads records of many shards by index; may be used by several threads.

    The first time, a record is read by ArrayRecord, which compares its checksum. From then on it comes from
    memory if it is kept there, else straight from its place in the file, several times as quick, and the sum
    of its words is compared. Files are read and not mapped: of a mapped one a disk gives many times what is
    asked for, and a cut one kills the process.

    Args:
        paths: of the shards.
        counts: how many records each has.
        record_bytes: the length of each.
        keep: hold every record that was read in memory.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], record_bytes: int, keep: bool = False):
        self._paths = paths
        self._starts = np.cumsum([0, *counts])
        self._bytes = record_bytes
        self._width = -(-record_bytes // 8) * 8
        self._known = np.zeros(self._starts[-1], bool)
        self._sums = np.zeros(self._starts[-1], np.uint32)  # twice as quick as sums of 64 bits
        self._kept = np.zeros((self._starts[-1], self._width), np.uint8) if keep else None
        self._readers: dict[int, ArrayRecordReader] = {}
        self._files: dict[int, RawIOBase] = {}
        self._lock = threading.Lock()

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The raw records at `indices` [n], uint8 [n, S], and which [n] were read for the first time.

        S is the record bytes, filled up with zeros to whole words.

        Raises:
            InputError: a shard cannot be read or was changed.
        """
        rows = self._empty(len(indices))
        fresh = ~self._known[indices]
        if fresh.any():
            owners = self._owners(indices)
            for number in np.unique(owners[fresh]):
                self._read_checked(int(number), indices, np.flatnonzero(fresh & (owners == number)), rows)
            if self._kept is None:
                self._sums[indices[fresh]] = _sums(rows)[fresh]
            else:
                self._kept[indices[fresh]] = rows[fresh]
            self._known[indices[fresh]] = True
            if not fresh.all():
                rows[~fresh] = self._read_again(indices[~fresh], self._empty(int((~fresh).sum())))
        else:
            self._read_again(indices, rows)
        return rows, fresh

    def forget(self, indices: np.ndarray) -> None:
        """The records at `indices` [n] are as if they had not been read."""
        self._known[indices] = False

    def _read_checked(self, number: int, indices: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        try:
            with self._lock:
                if number not in self._readers:
                    self._readers[number] = ArrayRecordReader(str(self._paths[number]), RANDOM_ACCESS)
                found = self._readers[number].read((indices[places] - self._starts[number]).tolist())
            for place, record in zip(places.tolist(), found, strict=True):
                rows[place, : self._bytes] = np.frombuffer(record, np.uint8)
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._error(number, str(error).splitlines()[0]) from error

    def _read_again(self, indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if self._kept is not None:
            return np.take(self._kept, indices, axis=0, out=rows, mode="clip")  # "raise" would copy twice
        owners = self._owners(indices)
        starts = _places(indices - self._starts[owners], self._bytes)
        files = {number: self._file(number) for number in set(owners.tolist())}
        descriptors = [files[number] for number in owners.tolist()]
        reads = map(os.preadv, descriptors, self._buffers(starts, rows), starts.tolist())
        sums, read = np.empty(len(indices), np.uint32), 0
        try:
            for first in range(0, len(indices), GROUP):
                for length in itertools.islice(reads, GROUP):
                    if length < self._bytes:
                        raise self._error(int(owners[read]), "it ends too early")
                    read += 1
                group = slice(first, first + GROUP)
                sums[group] = _sums(rows[group])  # while they are in the cache
        except OSError as error:
            raise self._error(int(owners[read]), str(error.strerror)) from error
        wrong = sums != self._sums[indices]
        if wrong.any():
            number = int(owners[np.argmax(wrong)])
            raise self._error(number, "a record is not what it was when it was first read")
        return rows

    def _buffers(self, starts: np.ndarray, rows: np.ndarray) -> list[list[memoryview | bytearray]]:
        """What each record is read into: its row, with the headers of blocks that lie within it elsewhere."""
        content, width, header = rows.reshape(-1).data, rows.shape[1], bytearray(BLOCK_HEADER)
        buffers: list[list[memoryview | bytearray]] = [
            [content[at : at + self._bytes]] for at in range(0, rows.size, width)
        ]
        cuts = BLOCK - starts % BLOCK
        for place in np.flatnonzero(cuts < self._bytes).tolist():
            row, cut = content[place * width : place * width + self._bytes], int(cuts[place])
            buffers[place] = [row[:cut]]
            for at in range(cut, self._bytes, CONTENT):
                buffers[place] += (header, row[at : at + CONTENT])
        return buffers

    def _empty(self, count: int) -> np.ndarray:
        """Rows [count, S] for records, whose last bytes, which no record fills, are zero."""
        rows = np.empty((count, self._width), np.uint8)
        rows[:, self._bytes :] = 0
        return rows

    def _owners(self, indices: np.ndarray) -> np.ndarray:
        """The number of the shard of each record."""
        return np.searchsorted(self._starts, indices, side="right") - 1

    def _file(self, number: int) -> int:
        try:
            if number not in self._files:
                with self._lock:
                    self._files.setdefault(number, self._paths[number].open("rb", buffering=0))
        except OSError as error:
            raise self._error(number, str(error.strerror)) from error
        return self._files[number].fileno()

    def _error(self, number: int, what: str) -> InputError:
        return InputError(
            f"shard {self._paths[number]} cannot be read ({what}): it was changed or the disk is failing; "
            "compare its SHA-256 with manifest.json"
        )


def _sums(rows: np.ndarray) -> np.ndarray:
    """Of the words of each row."""
    return rows.view(np.uint32).sum(axis=1, dtype=np.uint32)


def _places(indices: np.ndarray, record_bytes: int) -> np.ndarray:
    """The first byte of each record in the file."""
    varint = -(-record_bytes.bit_length() // 7)
    header = CHUNK_HEADER + 2 + varint
    # Counted without the headers of blocks, records lie evenly.
    content = CHUNK_HEADER + header + indices * (header + record_bytes)
    return content + BLOCK_HEADER * (content // CONTENT + 1)
