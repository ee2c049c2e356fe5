"""A data set that grows shard by shard, by several hosts, and goes on after being killed at any time.

The shards grow in the folder `OUT.unfinished`, each beside a small JSON file that says that it is whole. When
all are there, the last host writes the manifest and the folder becomes `OUT`.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from pom_jax.data.manifest import (
    FILE,
    UNFINISHED,
    Manifest,
    Shard,
    check_affine,
    check_fields,
    read_manifest,
    sha256,
)
from pom_jax.data.recipe import Batch, Piece, Recipe, check_settings
from pom_jax.data.shards import DiskError, Moments, ShardFile, check_batch, free_space, to_records
from pom_jax.errors import InputError

PLAN = "plan.json"
UNREADABLE = "unreadable.txt"
CLIPPED = 0.01  # of the numbers of a shard: more, and int8 is no way to store them


@dataclass
class _Growing:
    """The shard that is being written."""

    piece: Piece
    file: ShardFile
    moments: Moments
    seen: dict[str, Any] = field(default_factory=lambda: {"unreadable": [], "too_small": 0, "clipped": 0})


class Unfinished:
    """The folder in which a data set grows; a context manager.

    Args:
        out: the folder to make.
        recipe: of the set.
        host: which of several hosts this is; each has its own lock.
        max_unreadable: pictures that may be left out because they cannot be read.

    Raises:
        InputError: something else at `out`, a set begun with other settings, a second command at work on it,
            too many unreadable pictures, or a disk that takes no more. Whole shards stay what they are.
    """

    def __init__(self, out: str | Path, recipe: Recipe, *, host: int = 0, max_unreadable: int = 100):
        check_fields(recipe.fields)
        check_affine(recipe.scale, recipe.shift)
        self.out, self.recipe = Path(out), recipe
        self.folder = self.out.with_name(f"{self.out.name}{UNFINISHED}")
        self._host, self._max_unreadable = host, max_unreadable
        self._lock: IO[str] | None = None
        self._growing: _Growing | None = None
        self._unreadable: list[str] = []

    def __enter__(self) -> "Unfinished":
        check_free(self.out)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / PLAN).exists() and any(self.folder.iterdir()):
                raise InputError(
                    f"{self.folder} is no unfinished data set; nothing was changed. Move it away."
                )
            self._lock = (self.folder / f"host-{self._host}.lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (self.folder / PLAN).exists():
                _write_whole(self.folder / PLAN, json.dumps(dict(self.recipe.settings), indent=2) + "\n")
            begun = json.loads((self.folder / PLAN).read_text())
        except BlockingIOError as error:
            raise InputError(
                f"another command is making {self.out} as host {self._host}; wait for it, or give each --host"
            ) from error
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error}") from error
        way = f"remove {self.folder} to begin anew, or give another --out"
        check_settings(str(self.folder), "was begun", begun, self.recipe.settings, way)
        return self

    def __exit__(self, *_: object) -> None:
        if self._growing is not None:
            self._growing.file.abandon()
            self._growing.file.path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def missing(self, hosts: int = 1) -> list[Piece]:
        """The pieces of this host, every `hosts`-th, whose shards are not there yet."""
        self._unreadable = [
            name for facts in map(self._facts, self.recipe.pieces) if facts for name in facts["unreadable"]
        ]
        return [piece for piece in self.recipe.pieces[self._host :: hosts] if self._facts(piece) is None]

    def write(self, batch: Batch) -> None:
        """Appends records, and closes the shard after the last ones of a piece."""
        try:
            self._write(batch)
        except (DiskError, OSError) as error:
            raise InputError(
                f"writing {self.folder} failed: {error}. {free_space(self.folder)}; make room. All whole "
                "shards are kept: the same command goes on after them."
            ) from error

    def _write(self, batch: Batch) -> None:
        piece, fields = batch.piece, self.recipe.fields
        if self._growing is None:
            moments = Moments(fields["mean"].shape[-1])
            self._growing = _Growing(piece, ShardFile(self.folder / f"{piece.name}.part"), moments)
        now = self._growing
        self._count_unreadable(batch.unreadable)
        now.seen["unreadable"] += batch.unreadable
        now.seen["too_small"] += batch.too_small
        if batch.count:
            arrays = {name: np.asarray(array)[: batch.count] for name, array in batch.arrays.items()}
            start = now.file.records
            arrays = check_batch(fields, arrays, len(self.recipe.classes), f"{piece.name} (its part)", start)
            now.moments.add(fields, arrays)
            for record in to_records(arrays):
                now.file.append(record.tobytes())
            if batch.clipped is not None:
                now.seen["clipped"] += int(np.asarray(batch.clipped)[: batch.count].sum())
        if batch.last:
            self._close(now)
            self._growing = None

    def _close(self, now: _Growing) -> None:
        shard = now.file.close()
        numbers = now.moments.pixels * now.moments.sums.shape[1] * (2 if "std" in self.recipe.fields else 1)
        if now.seen["clipped"] > CLIPPED * numbers:
            raise InputError(
                f"{now.seen['clipped'] / numbers:.1%} of the numbers of {now.piece.name} lie beyond what "
                "int8 can hold: these latents are too wide for it; use --moments=float16 and another --out"
            )
        path = self.folder / f"{now.piece.name}.array_record"
        with now.file.path.open("rb") as file:
            os.fsync(file.fileno())
        now.file.path.replace(path)
        facts = {
            "shard": asdict(shard) | {"file": path.name},
            "sums": now.moments.sums.tolist(),
            "pixels": now.moments.pixels,
            **now.seen,
        }
        _write_whole(self.folder / f"{now.piece.name}.json", json.dumps(facts, indent=1) + "\n")

    def _count_unreadable(self, found: Sequence[str]) -> None:
        self._unreadable += found
        if len(self._unreadable) > self._max_unreadable:
            shown = "".join(f"\n  {name}" for name in self._unreadable[:10])
            raise InputError(
                f"{len(self._unreadable)} pictures cannot be read, more than --max-unreadable="
                f"{self._max_unreadable}; repair or remove them, or allow more. The first:{shown}"
            )

    def _facts(self, piece: Piece) -> dict[str, Any] | None:
        """What is known of a shard that is whole; None if it is not there or was cut since."""
        try:
            facts = json.loads((self.folder / f"{piece.name}.json").read_text())
            size = (self.folder / facts["shard"]["file"]).stat().st_size
            return facts if size == facts["shard"]["bytes"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finish(self) -> Manifest | None:
        """Writes the manifest if all shards are there; None if other hosts are still at work.

        Raises:
            InputError: a shard that is no longer what was written, or a split without records.
        """
        facts = [self._facts(piece) for piece in self.recipe.pieces]
        if any(found is None for found in facts):
            # Another host may have been quicker, and the folder is gone.
            return read_manifest(self.out) if (self.out / FILE).is_file() else None
        whole = [found for found in facts if found is not None]
        manifest = self._manifest(whole)
        for found, piece in zip(whole, self.recipe.pieces, strict=True):
            path = self.folder / found["shard"]["file"]
            if sha256(path) != found["shard"]["sha256"]:
                (self.folder / f"{piece.name}.json").unlink()
                raise InputError(
                    f"{path} is not what was written (its SHA-256 is not "
                    f"{found['shard']['sha256'][:16]}...): the disk may be failing. "
                    "The same command makes this shard again."
                )
        listed = sorted(name for found in whole for name in found["unreadable"])
        try:
            if listed:
                _write_whole(self.folder / UNREADABLE, "\n".join(listed) + "\n")
            _write_whole(self.folder / FILE, manifest.to_json())
            self.folder.rename(self.out)
        except FileNotFoundError:
            return read_manifest(self.out)  # another host was quicker
        except OSError as error:
            raise InputError(f"{self.folder} cannot become {self.out}: {error}") from error
        tidy(self.out, self.recipe)
        return manifest

    def _manifest(self, whole: Sequence[Mapping[str, Any]]) -> Manifest:
        moments = Moments(self.recipe.fields["mean"].shape[-1])
        splits: dict[str, list[Shard]] = {"train": [], "test": []}
        for found, piece in zip(whole, self.recipe.pieces, strict=True):
            if found["shard"]["records"]:
                splits[piece.split].append(Shard(**found["shard"]))
            if piece.split == "train":
                moments.sums += np.array(found["sums"])
                moments.pixels += found["pixels"]
        for split, shards in splits.items():
            if not shards:
                raise InputError(
                    f"no picture is left in split {split} of {self.out}: all of it cannot be read "
                    f"or is below --min-size; lower that, and remove {self.folder} to begin anew"
                )
        counts = {
            "unreadable": sum(len(found["unreadable"]) for found in whole),
            "below_min_size": sum(found["too_small"] for found in whole),
            "clipped_numbers": sum(found["clipped"] for found in whole),
        }
        made_by = {**self.recipe.notes, **self.recipe.settings}
        r = self.recipe
        return Manifest(
            name=r.name,
            fields=r.fields,
            splits={split: tuple(shards) for split, shards in splits.items()},
            classes=r.classes,
            scale=r.scale,
            shift=r.shift,
            **moments.mapped(r.scale, r.shift),
            autoencoder=r.autoencoder,
            made_by={**made_by, **{name: str(count) for name, count in counts.items()}},
        )


def find_finished(out: str | Path, recipe: Recipe) -> Manifest | None:
    """The set at `out` if it was made with this recipe, None if nothing is there.

    Raises:
        InputError: something else is there.
    """
    out = Path(out)
    if not (out / FILE).is_file():
        check_free(out)
        return None
    manifest = read_manifest(out)
    way = "nothing was changed: give another --out, or remove it yourself"
    check_settings(str(out), "was made", manifest.made_by, recipe.settings, way)
    tidy(out, recipe)
    return manifest


def tidy(out: Path, recipe: Recipe) -> None:
    """Removes from a finished set what only its making needed."""
    names = [PLAN, *(f"{piece.name}{ending}" for piece in recipe.pieces for ending in (".json", ".part"))]
    for path in [*map(out.joinpath, names), *out.glob("host-*.lock")]:
        path.unlink(missing_ok=True)


def check_free(out: Path) -> None:
    """Raises InputError if something is at `out`."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = "holds other things" if out.is_dir() else "is a file"
        raise InputError(f"{out} exists and {what}; nothing was changed. Give another --out.")


def _write_whole(path: Path, text: str) -> None:
    """Writes a file that is whole or not there, whenever the power goes."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
