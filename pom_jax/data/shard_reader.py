"""Random records of a split, quickly, and never a changed one."""

import itertools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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

GROUP = 16  # records that are added up while they are still in the cache
THREADS = 2  # one prepares a call while the system copies for the other


class ShardReader:
    """Reads records of many shards by index; may be used by several threads.

    The first time, a record is read by ArrayRecord, which compares its checksum. From then on it comes
    straight from its place in the file, several times as quick, and the sum of its words is compared.

    Args:
        paths: of the shards.
        counts: how many records each has.
        record_bytes: the length of each.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], record_bytes: int):
        self._paths = paths
        self._starts = np.cumsum([0, *counts])
        self._bytes = record_bytes
        self._known = np.zeros(self._starts[-1], bool)
        self._sums = np.zeros(self._starts[-1], np.uint32)  # twice as quick as sums of 64 bits
        self._readers: dict[int, ArrayRecordReader] = {}
        self._files: dict[int, RawIOBase] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "shard_reader")

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
                places = np.flatnonzero(fresh & (owners == number))
                self._read_checked(int(number), indices[places], rows, places)
            rows[~fresh] = self._read_again(indices[~fresh], self._empty(int((~fresh).sum())))
        else:
            self._read_again(indices, rows)
        return rows, fresh

    def _read_checked(self, number: int, indices: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        try:
            with self._lock:
                if number not in self._readers:
                    self._readers[number] = ArrayRecordReader(str(self._paths[number]), RANDOM_ACCESS)
                found = self._readers[number].read((indices - self._starts[number]).tolist())
            for place, record in zip(places.tolist(), found, strict=True):
                rows[place, : self._bytes] = np.frombuffer(record, np.uint8)
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._error(number, str(error).splitlines()[0]) from error
        self._sums[indices] = rows[places].view(np.uint32).sum(axis=1, dtype=np.uint32)
        self._known[indices] = True

    def _read_again(self, indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
        parts = zip(np.array_split(indices, THREADS), np.array_split(rows, THREADS), strict=True)
        for _ in self._threads.map(lambda part: self._read_part(*part), parts):
            pass  # raises what a thread raised
        return rows

    def _read_part(self, indices: np.ndarray, rows: np.ndarray) -> None:
        owners, content, header = self._owners(indices), rows.reshape(-1).data, bytearray(BLOCK_HEADER)
        files = {number: self._file(number) for number in set(owners.tolist())}
        starts = _places(indices - self._starts[owners], self._bytes)
        cuts = BLOCK - starts % BLOCK
        stops = range(self._bytes, rows.size + 1, rows.shape[1])
        todo = zip(owners.tolist(), starts.tolist(), cuts.tolist(), stops, strict=False)
        sums = np.empty(len(indices), np.uint32)
        for first in range(0, len(indices), GROUP):
            for number, start, cut, stop in itertools.islice(todo, GROUP):
                at = stop - self._bytes
                parts: list[memoryview | bytearray] = []
                while at + cut < stop:
                    parts += (content[at : at + cut], header)
                    at, cut = at + cut, BLOCK - BLOCK_HEADER
                parts.append(content[at:stop])
                try:
                    length = os.preadv(files[number], parts, start)
                except OSError as error:
                    raise self._error(number, str(error.strerror)) from error
                if length < self._bytes:
                    raise self._error(number, "it ends too early")
            group = slice(first, first + GROUP)
            sums[group] = rows[group].view(np.uint32).sum(axis=1, dtype=np.uint32)
        wrong = sums != self._sums[indices]
        if wrong.any():
            number = int(owners[np.argmax(wrong)])
            raise self._error(number, "a record is not what it was when it was first read")

    def _empty(self, count: int) -> np.ndarray:
        """Rows [count, S] for records, whose last bytes, which no record fills, are zero."""
        rows = np.empty((count, -(-self._bytes // 8) * 8), np.uint8)
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


def _places(indices: np.ndarray, record_bytes: int) -> np.ndarray:
    """The first byte of each record in the file."""
    varint = -(-record_bytes.bit_length() // 7)
    header = CHUNK_HEADER + 2 + varint
    # Counted without the headers of blocks, records lie evenly.
    content = CHUNK_HEADER + header + indices * (header + record_bytes)
    return content + BLOCK_HEADER * (content // (BLOCK - BLOCK_HEADER) + 1)
