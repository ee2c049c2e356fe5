"""A data set that grows shard by shard, by several hosts, and goes on after being killed at any time.

The shards grow in the folder `OUT.unfinished`, each beside a small JSON file that says that it is whole. When
all are there, the last host writes the manifest and the folder becomes `OUT`.
"""

import contextlib
import fcntl
import itertools
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from pom_jax.data.fields import NOT_FINITE, check_fields, finite
from pom_jax.data.manifest import (
    FILE,
    Manifest,
    Shard,
    check_affine,
    growing,
    read_manifest,
    sha256,
)
from pom_jax.data.pictures import Skipped
from pom_jax.data.recipe import Batch, Piece, Recipe, check_settings
from pom_jax.data.shards import DiskError, Moments, ShardFile, check_batch, free_space, to_records
from pom_jax.errors import InputError

PLAN = "plan.json"
UNUSABLE = "unreadable.txt"  # a line for each file that cannot be used: its name and why
LEFT_OUT = "left_out.json"  # shard -> indices that have no record in it: what cannot be used or is too small
FIRST = 10  # of what cannot be used, that a message shows
CLIPPED = 0.01  # of the numbers of a shard: more, and int8 is no way to store them


@dataclass
class _Growing:
    """The shard that is being written."""

    piece: Piece
    file: ShardFile
    moments: Moments
    seen: dict[str, Any] = field(
        default_factory=lambda: {"unreadable": [], "too_small": 0, "left_out": [], "clipped": 0, "cut": 0}
    )


class Unfinished:
    """The folder in which a data set grows; a context manager.

    Args:
        out: the folder to make.
        recipe: of the set.
        host, hosts: which of how many hosts this is; each has its own lock.
        max_unreadable: samples that may be left out because they cannot be used.

    Raises:
        InputError: something else at `out`, a set begun with other settings, a second command at work on it,
            too many samples that cannot be used, nothing left, or a disk that takes no more. Whole shards
            stay what they are.
    """

    def __init__(
        self, out: str | Path, recipe: Recipe, *, host: int = 0, hosts: int = 1, max_unreadable: int = 100
    ):
        check_fields(recipe.fields, recipe.words)
        check_affine(recipe.scale, recipe.shift)
        self.out, self.recipe = Path(out), recipe
        self._home = self.out.resolve()  # a link may lead to another disk
        self.folder = growing(self.out)
        self._host, self._hosts, self._max_unreadable = host, hosts, max_unreadable
        self._lock: IO[str] | None = None
        self._growing: _Growing | None = None
        self._failed = False
        self._unusable: list[str] = []  # of all hosts before this start, and of this one since

    def __enter__(self) -> "Unfinished":
        check_free(self.out)
        with contextlib.ExitStack() as undo:
            undo.callback(self.__exit__)
            self._begin()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self._growing is not None:
            self._growing.file.abandon()
            self._growing.file.path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def _begin(self) -> None:
        plan = self.folder / PLAN
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Another host may be beginning too, or was killed while it did.
            beginnings = ("host-*.lock", f"{PLAN}*")
            foreign = [path for path in self.folder.iterdir() if not any(map(path.match, beginnings))]
            if foreign and not plan.exists():
                raise InputError(
                    f"{self.folder} is no unfinished data set; nothing was changed. Move it away."
                )
            self._take_lock()
            if not plan.exists():
                _write_whole(plan, json.dumps(dict(self.recipe.settings), indent=2) + "\n")
            begun = json.loads(plan.read_text())
        except BlockingIOError as error:
            raise InputError(
                f"another command is making {self.out} (this is host {self._host} of {self._hosts}); wait "
                "for it, or give all the same --hosts and each its own --host"
            ) from error
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error}") from error
        way = f"remove {self.folder} to begin anew, or give another --out"
        check_settings(str(self.folder), "was begun", begun, self.recipe.settings, way)

    def _take_lock(self) -> None:
        """No two commands make the same shard: none as the same host, none among another number of hosts."""
        self._lock = (self.folder / f"host-{self._host}-of-{self._hosts}.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in self.folder.glob("host-*.lock"):
            if not path.match(f"host-*-of-{self._hosts}.lock"):
                with path.open() as other:
                    fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def missing(self) -> list[Piece]:
        """The pieces of this host, every `hosts`-th, whose shards are not there yet."""
        self._unusable = [
            name for facts in map(self._facts, self.recipe.pieces) if facts for name in facts["unreadable"]
        ]
        own = self.recipe.pieces[self._host :: self._hosts]
        return [piece for piece in own if self._facts(piece) is None]

    def write(self, batch: Batch) -> None:
        """Appends records, and closes the shard after the last ones of a piece; nothing after an error."""
        if self._failed:  # or the last batch of a shard would close it without the one that failed
            raise InputError(f"writing {self.folder} has failed before")
        self._failed = True
        try:
            self._write(batch)
        except (DiskError, OSError) as error:
            raise InputError(
                f"writing {self.folder} failed: {error}. {free_space(self.folder)}; make room. All whole "
                "shards are kept: the same command goes on after them."
            ) from error
        self._failed = False

    def _write(self, batch: Batch) -> None:
        piece, fields = batch.piece, self.recipe.fields
        if self._growing is None:
            moments = Moments(fields["mean"].shape[-1])
            self._growing = _Growing(piece, ShardFile(self.folder / f"{piece.name}.part"), moments)
        now = self._growing
        batch = _without_padding(batch)
        self._leave_out(now, batch.left_out)
        now.seen["cut"] += batch.cut
        if batch.count:
            limits = {"classes": len(self.recipe.classes), "words": len(self.recipe.words)}
            where = {"split": f"{piece.name} (its part)", "start": now.file.records}
            arrays = check_batch(fields, batch.arrays, **limits, **where)
            now.moments.add(fields, arrays)
            for record in to_records(arrays):
                now.file.append(record.tobytes())
            if batch.clipped is not None:
                now.seen["clipped"] += int(batch.clipped.sum())
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

    def _leave_out(self, now: _Growing, found: Mapping[int, Skipped]) -> None:
        unusable = [f"{one.name}: {one.reason}" for one in found.values() if one.reason is not None]
        now.seen["left_out"] += found
        now.seen["unreadable"] += unusable
        now.seen["too_small"] += len(found) - len(unusable)
        self._unusable += unusable
        if len(self._unusable) > self._max_unreadable:
            self._list(self._unusable)
            raise InputError(
                f"{len(self._unusable)} {self.recipe.unit} cannot be used, more than --max-unreadable="
                f"{self._max_unreadable}: allow more, and the same command goes on; or repair them, and "
                f"remove {self.folder} to begin anew.{self._shown(self._unusable)}"
            )

    def _list(self, unusable: Sequence[str]) -> None:
        path = self.folder / UNUSABLE
        if unusable:
            _write_whole(path, "\n".join(sorted(unusable)) + "\n")
        else:
            path.unlink(missing_ok=True)  # of an earlier start

    def _shown(self, unusable: Sequence[str]) -> str:
        """For messages: where the samples that cannot be used are listed, and the first of them."""
        if not unusable:
            return ""
        lines = "".join(f"\n  {line}" for line in sorted(unusable)[:FIRST])
        return f" {self.folder / UNUSABLE} lists them, first:{lines}"

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
        left_out = {
            piece.name: found["left_out"]
            for found, piece in zip(whole, self.recipe.pieces, strict=True)
            if found.get("left_out")
        }
        try:
            self._list([name for found in whole for name in found["unreadable"]])
            manifest = self._manifest(whole)
            self._compare(whole)
            if left_out:
                _write_whole(self.folder / LEFT_OUT, json.dumps(left_out) + "\n")
            _write_whole(self.folder / FILE, manifest.to_json())
            self.folder.rename(self._home)
        except FileNotFoundError:
            return read_manifest(self.out)  # another host was quicker
        except OSError as error:
            raise InputError(f"{self.folder} cannot become {self.out}: {error}") from error
        tidy(self.out, self.recipe)
        return manifest

    def _compare(self, whole: Sequence[Mapping[str, Any]]) -> None:
        """Raises InputError if a shard is no longer what was written, and forgets that it is whole."""
        for found, piece in zip(whole, self.recipe.pieces, strict=True):
            path = self.folder / found["shard"]["file"]
            if sha256(path) != found["shard"]["sha256"]:
                (self.folder / f"{piece.name}.json").unlink()
                raise InputError(
                    f"{path} is not what was written (its SHA-256 is not "
                    f"{found['shard']['sha256'][:16]}...): the disk may be failing. "
                    "The same command makes this shard again."
                )

    def _nothing_left(self, split: str, whole: Sequence[Mapping[str, Any]]) -> InputError:
        own = [found for found, piece in zip(whole, self.recipe.pieces, strict=True) if piece.split == split]
        unusable = [name for found in own for name in found["unreadable"]]
        causes = f"{len(unusable)} cannot be used"
        if small := sum(found["too_small"] for found in own):
            causes += f", {small} are below --min-size={self.recipe.settings['min_size']}"
        return InputError(
            f"none of the {self.recipe.unit} is left in split {split} of {self.out}: {causes}. Give others "
            f"or other flags, and remove {self.folder} to begin anew.{self._shown(unusable)}"
        )

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
                raise self._nothing_left(split, whole)
        counts = {
            "unreadable": sum(len(found["unreadable"]) for found in whole),
            "below_min_size": sum(found["too_small"] for found in whole),
            "clipped_numbers": sum(found["clipped"] for found in whole),
        }
        if self.recipe.text_encoder is not None:
            counts["cut_captions"] = sum(found.get("cut", 0) for found in whole)
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
            words=r.words,
            text_encoder=r.text_encoder,
        )


def _without_padding(batch: Batch) -> Batch:
    """The records that count, in numpy; of those with names, the finite ones: the others are left out."""
    arrays = {name: np.asarray(array)[: batch.count] for name, array in batch.arrays.items()}
    clipped = None if batch.clipped is None else np.asarray(batch.clipped)[: batch.count]
    bad = {
        int(place): f"field {name}: {NOT_FINITE}"
        for name, array in arrays.items()
        for place in np.flatnonzero(~finite(array))
    }
    if not (bad and batch.names):
        return replace(batch, arrays=arrays, clipped=clipped)
    files, places = list(batch.names.items()), list(bad)
    skipped = {files[place][0]: Skipped(files[place][1], reason) for place, reason in bad.items()}
    return replace(
        batch,
        arrays={name: np.delete(array, places, axis=0) for name, array in arrays.items()},
        count=batch.count - len(bad),
        clipped=None if clipped is None else np.delete(clipped, places),
        left_out={**batch.left_out, **skipped},
    )


def read_left_out(folder: Path) -> dict[str, list[int]]:
    """The indices of each shard of a finished set that have no record in it; none where no file tells."""
    try:
        return json.loads((folder / LEFT_OUT).read_text())
    except (OSError, ValueError):
        return {}


def find_finished(out: str | Path, recipe: Recipe) -> Manifest | None:
    """The set at `out` if it was made with this recipe, None if nothing is there.

    Raises:
        InputError: something else is there, or a shard is missing or cut.
    """
    out = Path(out)
    if not (out / FILE).is_file():
        check_free(out)
        return None
    manifest = read_manifest(out)
    way = "nothing was changed: give another --out, or remove it yourself"
    check_settings(str(out), "was made", manifest.made_by, recipe.settings, way)
    for shard in itertools.chain(*manifest.splits.values()):
        path = out / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise InputError(f"{path} is missing or cut: remove {out}, and the same command makes it again")
    tidy(out, recipe)
    return manifest


def tidy(out: Path, recipe: Recipe) -> None:
    """Removes from a finished set what only its making needed."""
    names = [PLAN, *(f"{piece.name}{ending}" for piece in recipe.pieces for ending in (".json", ".part"))]
    for path in [*map(out.joinpath, names), *out.glob("host-*.lock"), *out.glob("*.*.*.part")]:
        path.unlink(missing_ok=True)


def check_free(out: Path) -> None:
    """Raises InputError if something is at `out`, or nothing can take its place."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = "holds other things" if out.is_dir() else "is a file"
        raise InputError(f"{out} exists and {what}; nothing was changed. Give another --out.")
    if out.is_mount():
        raise InputError(f"{out} is a mounted disk; give a folder in it, such as --out={out / 'set'}")


def _write_whole(path: Path, text: str) -> None:
    """Writes a file that is whole or not there, whenever the power goes."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # other hosts write the same ones
    try:
        with part.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
