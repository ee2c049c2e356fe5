"""Where the numbers of a run go: metrics.jsonl always, TensorBoard and Weights & Biases if asked for."""

import contextlib
import importlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from absl import logging

from pom_jax.errors import REFUSALS, InputError, TroubledDisk
from pom_jax.files import write_whole

FILE = "metrics.jsonl"
TIME = "time_"  # prefix of what the clock decides, which alone differs between a run and its repetition


class Sink(Protocol):
    """Takes one row of numbers a step."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """One step's numbers."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


class JsonLines:
    """metrics.jsonl: one JSON object a step, in order, whatever crashes and resumptions lie in between.

    Numbers that are not finite become null, for JSON has no others.

    Args:
        workdir: of the run.
        start: step the run goes on from; later rows, of steps that will be done again, are cut off.
    """

    def __init__(self, workdir: Path, start: int):
        self._path, self._last = workdir / FILE, start
        with _in_words(self._path, "opened"):
            self._path.touch()
            _cut(self._path, start)
            self._open()

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """One step's numbers, or more of them for the last row."""
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with _in_words(self._path, "written"):
            if step == self._last:
                *rows, last = self._path.read_text().splitlines(keepends=True)
                write_whole(self._path, "".join([*rows, json.dumps(json.loads(last) | finite) + "\n"]))
                self._file.close()
                self._open()
            else:
                self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._last = step

    def _open(self) -> None:
        self._file = self._path.open("a", buffering=1)  # a row reaches the system at once: kill -9 loses none

    def sync(self) -> None:
        """Waits until all rows are on the disk; before a checkpoint that says they exist."""
        with _in_words(self._path, "written"):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a row that could not be written before
            self._file.close()


class TensorBoard:
    """Event files in WORKDIR/tensorboard."""

    def __init__(self, workdir: Path, start: int):
        module = _import("tensorboardX", "log.tensorboard")
        self._writer = module.SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run a workdir; a resumed run goes on in the same one."""

    def __init__(self, workdir: Path, name: str, config: Mapping[str, Any]):
        module = _import("wandb", "log.wandb")
        identity = workdir.absolute().as_posix().strip("/").replace("/", "-")[-60:]
        self._run = module.init(
            project="pom_jax", name=name, id=identity, resume="allow", dir=str(workdir), config=dict(config)
        )

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        self._run.finish()


def check_sinks(config: Any) -> None:
    """Raises InputError if `config.log` asks for a package that is not installed."""
    for wanted, package in ((config.log.tensorboard, "tensorboardX"), (config.log.wandb, "wandb")):
        if wanted:
            _import(package, f"log.{package.removesuffix('X')}")


def optional_sinks(config: Any, workdir: Path, start: int) -> list[Sink]:
    """The sinks that `config.log` asks for."""
    sinks: list[Sink] = []
    if config.log.tensorboard:
        sinks.append(TensorBoard(workdir, start))
    if config.log.wandb:
        sinks.append(WeightsAndBiases(workdir, config.name, config.to_dict()))
    return sinks


def read_rows(workdir: str | Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics.jsonl, one a step."""
    return [json.loads(line) for line in (Path(workdir) / FILE).read_text().splitlines()]


def rows_after(workdir: str | Path, step: int) -> list[dict[str, Any]]:
    """The rows of the steps beyond `step`, last one first; half of a row, where a process died, is none."""
    path, rows = Path(workdir) / FILE, []
    with _in_words(path, "opened"):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in reversed(lines):
        if (found := _step(line)) is not None:
            if found <= step:
                break
            rows.append(json.loads(line))
    return rows


def up_to(lines: Sequence[bytes], step: int) -> list[bytes]:
    """Those lines that are whole rows of the steps up to `step`."""
    return [line for line in lines if (found := _step(line)) is not None and found <= step]


def by_step(workdir: str | Path, name: str) -> dict[int, float]:
    """The finite values of one field in metrics.jsonl, by their steps."""
    path = Path(workdir) / FILE
    with _in_words(path, "opened"), path.open() as file:
        rows = [json.loads(line) for line in file if f'"{name}"' in line]
    return {row["step"]: row[name] for row in rows if row[name] is not None}


@contextlib.contextmanager
def _in_words(path: Path, what: str) -> Iterator[None]:
    """Within, a disk that refuses or is in trouble ends in an InputError that names the file."""
    try:
        yield
    except OSError as error:
        refused = error.errno in REFUSALS
        kind, way_out = (InputError, "make room") if refused else (TroubledDisk, "look at the disk")
        raise kind(
            f"{path} cannot be {what} ({error.strerror}): {way_out} and run the same command again"
        ) from error


def _cut(path: Path, start: int) -> None:
    """Leaves the rows of steps up to `start`; of a file that lacks some, a copy is kept, and it is said."""
    lines = path.read_bytes().splitlines(keepends=True)
    rows = up_to(lines, start)
    if len(rows) < start:
        shutil.copyfile(path, path.with_suffix(".damaged"))
        logging.error(
            "%s was damaged: %d rows of the first %d steps are missing. What it held is in %s.",
            *(path, start - len(rows), start, path.with_suffix(".damaged")),
        )
    # Only a file that is damaged differs in its leading rows; any other is cut in place.
    with path.open("rb+") as file:
        if lines[: len(rows)] != rows:
            file.writelines(rows)
        file.truncate(sum(map(len, rows)))


def _step(line: bytes) -> int | None:
    """The step of a whole row; None for half a line, or one that is none of ours."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _import(package: str, field: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{field}=True needs the package {package}: pip install {package}, or leave {field} out"
        ) from error
