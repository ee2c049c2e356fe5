"""Random records of one shard, quickly, and never a changed one."""

import os
import threading
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"

# Where ArrayRecord puts the records of an uncompressed shard of one a group. Source: the format of Riegeli's
# files: blocks of 64 KiB, each with a header of 24 bytes; the rest are chunks with a header of 40 bytes, an
# empty one at first. The chunk of one record has two bytes and the record's length as a varint before it.
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 2**16, 24, 40


class ShardReader:
    """Reads records by index; may be used by several threads.

    The first time, a record is read by ArrayRecord, which compares its checksum. From then on it comes
    straight from its place in the file, several times as quick, and the sum of its words is compared.

    Args:
        path: of the shard.
        records: how many it has.
        record_bytes: the length of each.

    Raises:
        RuntimeError, ValueError, IndexError, OSError: the file cannot be read or was changed.
    """

    def __init__(self, path: Path, records: int, record_bytes: int):
        self._lock = threading.Lock()
        self._reader = ArrayRecordReader(str(path), RANDOM_ACCESS)
        self._file = path.open("rb", buffering=0)
        self._bytes = record_bytes
        self._places = _places(np.arange(records), record_bytes)
        self._known = np.zeros(records, bool)
        self._sums = np.zeros(records, np.uint64)

    def read(self, indices: np.ndarray, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Reads records into some rows.

        Args:
            indices: [n].
            rows: uint8 [m, S], C order; the first bytes of a row become the record.
            places: [n] the row of each record.

        Returns:
            [n] which of them were read for the first time.
        """
        fresh = ~self._known[indices]
        if fresh.any():
            with self._lock:
                found = self._reader.read(indices[fresh].tolist())
            for place, record in zip(places[fresh].tolist(), found, strict=True):
                rows[place, : self._bytes] = np.frombuffer(record, np.uint8)
        self._read_again(indices[~fresh], rows, places[~fresh])
        return fresh

    def compare(self, indices: np.ndarray, sums: np.ndarray, fresh: np.ndarray) -> None:
        """Notes the sums [n] of fresh records, and compares those of the others with what was noted."""
        if not np.array_equal(sums[~fresh], self._sums[indices[~fresh]]):
            raise ValueError("a record is not what it was when it was first read")
        self._sums[indices[fresh]] = sums[fresh]
        self._known[indices[fresh]] = True

    def _read_again(self, indices: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        file, size, stride = self._file.fileno(), self._bytes, rows.shape[1]
        content, header = rows.reshape(-1).data, bytearray(BLOCK_HEADER)
        for start, place in zip(self._places[indices].tolist(), places.tolist(), strict=True):
            row = content[place * stride : place * stride + size]
            parts: list[memoryview | bytearray] = []
            cut = BLOCK - start % BLOCK
            while cut < len(row):
                parts += [row[:cut], header]
                row, cut = row[cut:], BLOCK - BLOCK_HEADER
            parts.append(row)
            if os.preadv(file, parts, start) != sum(map(len, parts)):
                raise ValueError("it ends too early")


def _places(indices: np.ndarray, record_bytes: int) -> np.ndarray:
    """The first byte of each record in the file."""
    varint = -(-record_bytes.bit_length() // 7)
    header = CHUNK_HEADER + 2 + varint
    # Counted without the headers of blocks, records lie evenly.
    content = CHUNK_HEADER + header + indices * (header + record_bytes)
    return content + BLOCK_HEADER * (content // (BLOCK - BLOCK_HEADER) + 1)
