"""The order of records: a fresh shuffle every epoch, any part of which is known without the rest.

It is the order of `grain.MapDataset.range(n).seed(seed).shuffle().repeat()`, which finds one place at a time
and takes longer for it than reading the record does; here many places are found at once.
"""

import grain
import numpy as np

ROUNDS = 4
PART = 2**14  # places that are computed together
SMALL = 2**12  # below this many records a batch is mostly walking: left to grain
MASK = 2**32 - 1


class Order:
    """Which record stands at each place of an endless row of shuffled epochs.

    Places are encrypted with a block cipher of just enough bits, again and again until the result is below n
    (Black and Rogaway, 2002); the cipher is Simon (Beaulieu et al., 2013) in four rounds.

    Args:
        records: n, at least 1.
        seed: in [0, 2**32).
    """

    def __init__(self, records: int, seed: int):
        self._records = records
        self._seed = int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint32)[0])
        # Below 16 bits the permutations show patterns.
        bits = max(16, (records - 1).bit_length())
        self._half = (bits + 1) // 2
        self._part = records if records <= 2**16 else PART
        self._parts: dict[tuple[int, int], np.ndarray] = {}
        self._small = grain.MapDataset.range(records).seed(seed).shuffle().repeat()

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The records [n] int64 at places [n]."""
        if self._records < SMALL:
            return np.array([self._small[place] for place in places.tolist()], np.int64)
        epochs, within = np.divmod(places, self._records)
        parts, offsets = np.divmod(within, self._part)
        found = np.empty(len(places), np.int64)
        for epoch, part in sorted(set(zip(epochs.tolist(), parts.tolist(), strict=True))):
            own = (epochs == epoch) & (parts == part)
            found[own] = self._computed(epoch, part)[offsets[own]]
        return found

    def _computed(self, epoch: int, part: int) -> np.ndarray:
        if (epoch, part) not in self._parts:
            start = part * self._part
            places = np.arange(start, min(start + self._part, self._records), dtype=np.uint64)
            found = self._shuffled(places, _round_keys((self._seed + epoch) & MASK))
            # Batches go forward: the part before this one is all that can be wanted again.
            self._parts = {**dict(list(self._parts.items())[-1:]), (epoch, part): found}
        return self._parts[epoch, part]

    def _shuffled(self, values: np.ndarray, keys: list[int]) -> np.ndarray:
        open_ = np.arange(len(values))
        while len(open_):
            values[open_] = some = self._encrypted(values[open_], keys)
            open_ = open_[some >= self._records]
        return values.astype(np.int64)

    def _encrypted(self, values: np.ndarray, keys: list[int]) -> np.ndarray:
        half, mask = np.uint64(self._half), np.uint64(2**self._half - 1)

        def rotated(x: np.ndarray, by: int) -> np.ndarray:
            return (x << np.uint64(by) | x >> (half - np.uint64(by))) & mask

        left, right = values >> half, values & mask
        for key in keys:
            mixed = rotated(right, 1) & rotated(right, 8) ^ rotated(right, 2)
            left, right = right, left ^ mixed ^ (np.uint64(key) & mask)
        return left << half | right


def _round_keys(seed: int) -> list[int]:
    """Four numbers of 32 bits, as `std::seed_seq` of C++ makes them of one."""
    n = ROUNDS
    state = [0x8B8B8B8B] * n

    def stir(x: int, factor: int) -> int:
        return factor * (x ^ x >> 27) & MASK

    for k in range(n):
        one = stir(state[k] ^ state[(k + 1) % n] ^ state[k - 1], 1664525)
        two = (one + (1 if k == 0 else k + seed if k == 1 else k)) & MASK
        state[(k + 1) % n] = (state[(k + 1) % n] + one) & MASK
        state[(k + 2) % n] = (state[(k + 2) % n] + two) & MASK
        state[k] = two
    for k in range(n):
        one = stir((state[k] + state[(k + 1) % n] + state[k - 1]) & MASK, 1566083941)
        two = (one - k) & MASK
        state[(k + 1) % n] ^= one
        state[(k + 2) % n] ^= two
        state[k] = two
    return state
