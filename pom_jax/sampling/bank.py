"""Tens of thousands of samples on disk, in parts: a run that was killed goes on where it was.

A bank is a folder of files part-00000.npz, part-00001.npz, ... with `arr_0` (uint8 images), `arr_1` (labels)
and `settings` (which bank they belong to), and settings.json, which says what they are. Other settings are
another folder. A part appears whole or not at all, and counts as finished once its checksums were compared.
"""

import fcntl
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from pom_jax.diffusion.guidance import EVERYWHERE, Interval
from pom_jax.errors import BROKEN_NPZ, InputError
from pom_jax.sampling.generate import Generator
from pom_jax.sampling.progress import PartProgress, Progress
from pom_jax.training.digest import digests
from pom_jax.training.preview import labels_in_turn

PART = 1024  # images of a part
SETTINGS = "settings.json"
LOOKS = 3  # at a lock, which another host may hold for the instant of `is_drawn_by`
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bank:
    """Samples 0 to N of one model with one set of settings.

    Attributes:
        folder: of this bank alone.
        settings: everything that the images depend on, as settings.json holds it.
        labels: [N] int32, the class of each image.
        part: images of a part; the last may hold fewer.
    """

    folder: Path
    settings: Mapping[str, Any]
    labels: np.ndarray
    part: int

    @property
    def parts(self) -> int:
        return -(-len(self.labels) // self.part)

    @property
    def digest(self) -> str:
        """A checksum over the settings; each part holds it, so that another bank's is not taken for ours."""
        return _digest(_named(self.settings))

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.npz"

    def labels_of(self, number: int) -> np.ndarray:
        """The classes of the images of one part."""
        return self.labels[number * self.part : (number + 1) * self.part]

    def read(self, number: int) -> np.ndarray:
        """The images of one part, [n, H, W, C] uint8.

        Raises:
            InputError: it is missing, damaged or of other settings.
        """
        path, labels = self.path(number), self.labels_of(number)
        try:
            with np.load(path, allow_pickle=False) as content:
                # Reading to the end compares the checksums.
                images, found, digest = (content[name] for name in ("arr_0", "arr_1", "settings"))
        except BROKEN_NPZ as error:
            raise InputError(f"{path} is damaged: {error}") from error
        if str(digest) != self.digest:
            raise InputError(f"{path} holds samples of settings {digest}, not {self.digest}")
        if len(found) < len(labels) and np.array_equal(found, labels[: len(found)]):
            raise InputError(f"{path} holds {len(found)} of {len(labels)} images")
        if images.dtype != np.uint8 or not np.array_equal(found[: len(labels)], labels):
            raise InputError(f"{path} holds other labels or no images of 8 bits")
        return images[: len(labels)]

    def missing(self, say: Say, host: int = 0, hosts: int = 1) -> list[int]:
        """The parts to be drawn, by one of several hosts; of those that cannot be used it is said why."""
        lacking = []
        for number in range(host, self.parts, hosts):
            if self.path(number).exists():
                try:
                    self.read(number)
                    continue
                except InputError as error:
                    say(f"warning: {error}; it is drawn again")
            lacking.append(number)
        return lacking

    def fill(
        self,
        generator: Generator,
        *,
        batch_size: int = 256,
        host: int = 0,
        hosts: int = 1,
        say: Say,
        progress: Progress,
    ) -> None:
        """Draws the parts that are missing, of several hosts those of this one: part k is of host k % hosts.

        Args:
            generator: the one that `open_bank` was given.
            batch_size: images drawn at once, over all devices.
            host, hosts: this one, and how many fill the folder, which all of them see.
            say: told what is there and what is drawn again.
            progress: told how many of the images that are missing are there.

        Raises:
            InputError: another process fills the bank, the disk takes no more, or images that are not finite.
        """
        with self._held(host):
            if host == 0:
                self._write_settings()
            lacking = self.missing(say, host, hosts)
            total = sum(len(self.labels_of(k)) for k in lacking)
            say(f"samples: {len(self.labels):,} in {self.folder}, {total:,} to draw here")
            told = PartProgress(progress, total)
            for number in lacking:
                labels = self.labels_of(number)
                images = generator.sample(
                    labels,
                    guidance=self.settings["guidance"],
                    interval=self.settings["interval"],
                    sampler=self.settings["sampler"],
                    steps=self.settings["steps"],
                    seed=self.settings["seed"],
                    first=number * self.part,
                    batch_size=batch_size,
                    progress=told,
                )
                self._write(number, images, labels)
                told.part_done(len(labels))

    def is_drawn_by(self, host: int) -> bool:
        """Whether a process of this host fills the bank; False too where the file system locks nothing."""
        try:
            with (self.folder / f".host-{host}.lock").open("r+") as lock:  # NFS locks what can be written
                return not _take(lock)
        except OSError:
            return False

    def remove(self) -> None:
        """Deletes the parts, and the folder if nothing foreign is in it."""
        for pattern in ("part-*.npz", ".part-*.npz.unfinished", ".host-*.lock", SETTINGS):
            for path in self.folder.glob(pattern):
                path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    @contextmanager
    def _held(self, host: int) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / f".host-{host}.lock").open("w")
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written to: {error}") from error
        with lock:
            if not _take(lock, LOOKS):
                raise InputError(f"another process draws the samples of {self.folder}; wait until it ends")
            yield

    def _write_settings(self) -> None:
        path = self.folder / SETTINGS
        text = json.dumps(self.settings, indent=2) + "\n"
        if not path.is_file() or path.read_text(errors="replace") != text:
            with _whole_file(path) as file:
                file.write_text(text)

    def _write(self, number: int, images: np.ndarray, labels: np.ndarray) -> None:
        with _whole_file(self.path(number)) as unfinished, unfinished.open("wb") as file:
            np.savez(file, arr_0=images, arr_1=labels, settings=np.array(self.digest))
            file.flush()
            os.fsync(file.fileno())


def open_bank(
    folder: str | os.PathLike[str],
    generator: Generator,
    num: int,
    *,
    guidance: float,
    interval: Interval,
    sampler: str,
    steps: int,
    seed: int = 0,
    autoencoder: str | None = None,
    part: int = PART,
) -> Bank:
    """The bank of these settings, empty, begun or full; computes and writes nothing.

    Labels go through all classes in turn. A bank of 10,000 samples is the beginning of one of 50,000.

    Args:
        folder: of all banks of a run; this one's name there tells its settings.
        generator: draws the samples.
        num: N, how many.
        guidance, interval, sampler, steps, seed: of `Generator.sample_array`.
        autoencoder: checksum of the weights of the generator's decoder; None for a model of pixels.
        part: images of a file.

    Raises:
        InputError: sizes below 1, or a model of latents without a decoder.
    """
    if num < 1 or part < 1:
        raise InputError(f"num={num}, part={part}: both must be at least 1")
    generator.check_pixels()
    classes = generator.config.model.num_classes
    config = generator.config
    meaning: dict[str, Any] = {name: config[name].to_dict() for name in ("model", "diffusion")}
    meaning["dtype"] = config.dtype
    if generator.decoder is not None:
        meaning["decoder"] = generator.decoder.scale, generator.decoder.shift
    settings = {
        "model": config.name,
        "step": generator.step,
        "parameters": _digest(digests(generator.params)),
        "configuration": _digest(meaning),  # another objective draws other images with the same parameters
        "ema": None if generator.ema is None else generator.config.ema.decays[generator.ema],
        "sampler": sampler,
        "steps": steps,
        "guidance": float(guidance),
        "interval": list(interval),
        "seed": seed,
        "labels": f"{classes} classes in turn" if num >= classes else f"{num} of {classes} classes",
        "autoencoder": autoencoder,
        "part": part,
    }
    average = "no_ema" if generator.ema is None else f"ema_{settings['ema']:g}"
    name = f"step_{generator.step:07d}_{average}_{sampler}_{steps}_guidance_{guidance:g}_seed_{seed}"
    labels = labels_in_turn(classes, num).astype(np.int32)
    return Bank(Path(folder) / f"{name}-{_digest(_named(settings))[:8]}", settings, labels, part)


def write_bank(path: str | os.PathLike[str], bank: Bank) -> None:
    """Writes a full bank as the one npz that ADM's evaluation suite reads.

    It holds `arr_0`, images in RGB, and `arr_1`, labels. No more than a part is in memory.

    Raises:
        InputError: a part that cannot be used, or no room on the disk; nothing is left of the file then.
    """
    path, count = Path(path), len(bank.labels)
    with _whole_file(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for number in range(bank.parts):
                images = bank.read(number)
                if images.shape[-1] == 1:
                    images = images.repeat(3, axis=-1)
                if number == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *images.shape[1:])}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(images.data)
        with archive.open("arr_1.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, bank.labels, allow_pickle=False)


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A place to write to, which becomes `path` at the end of the block, and nothing if it fails."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error}; the same command goes on from the parts that are finished"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _take(lock: IO[str], looks: int = 1) -> bool:
    """Locks a file until it is closed; False if another process holds it at each of so many looks."""
    for look in range(looks):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1 if look + 1 < looks else 0)
        except OSError:
            return True  # some network file systems lock nothing: there, nothing is promised
    return False


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that tell banks apart: those from before there were intervals guide everywhere."""
    return {name: value for name, value in settings.items() if (name, value) != ("interval", [*EVERYWHERE])}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
