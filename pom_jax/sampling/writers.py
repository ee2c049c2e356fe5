"""Samples as files: pictures, animations, arrays."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pom_jax.errors import InputError
from pom_jax.sampling.pictures import grid

LONGEST = 240  # bytes of a file name: systems allow 255, and an unfinished file has some more
FRAMES = 60  # of an animation, at most
HOLD = 1_500  # ms that an animation rests on its last frame


def _write_png(file: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> None:
    grid(images, labels, names=names).save(file, "png")


def _write_npz(file: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> None:
    with file.open("wb") as out:
        np.savez_compressed(out, arr_0=images, arr_1=labels)


def _write_animation(file: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> None:
    last = len(images) - 1
    chosen = np.unique(np.linspace(0, last, min(len(images), FRAMES)).round().astype(int))
    frames = [grid(images[i], labels, names=names, footer=f"step {i} of {last}") for i in chosen]
    step = max(40, 2_000 // len(frames))
    frames[0].save(
        file,
        file.suffix[1:],
        save_all=True,
        append_images=frames[1:],
        duration=[step] * (len(frames) - 1) + [HOLD],
        loop=0,
        **({"lossless": True} if file.suffix == ".webp" else {}),
    )


Writer = Callable[[Path, np.ndarray, np.ndarray, Sequence[str] | None], None]
ANIMATIONS = (".gif", ".webp")
WRITERS: dict[str, Writer] = {
    ".png": _write_png,
    ".npz": _write_npz,
    **dict.fromkeys(ANIMATIONS, _write_animation),
}


def check_output(path: str | Path) -> Path:
    """The path of a file that `write` can make.

    Raises:
        InputError: another ending, a folder, or a place where nothing can be written.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise InputError(
            f"{path}: the ending says what to write: .png a labelled grid, .npz arrays, .gif or .webp the "
            "way from noise to images as an animation"
        )
    check_place(path)
    return path


def check_place(path: str | os.PathLike[str]) -> None:
    """Raises an InputError unless a file of this name can be written, whose folder need not be there yet."""
    path = Path(path)
    if len(os.fsencode(path.name)) > LONGEST:
        raise InputError(f"{path.name} is longer than {LONGEST} bytes: give the file a shorter name")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    check_folder(path.parent, path)


def check_folder(folder: str | os.PathLike[str], file: Path | None = None) -> None:
    """Raises an InputError, about the file if there is one, unless this folder can be written to, or made."""
    folder = Path(folder).absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(
            f"{file or folder} cannot be written: {existing} is not a folder that you may write to"
        )


def write(
    path: str | Path,
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    names: Sequence[str] | None = None,
) -> None:
    """Writes samples as what the ending of `path` says; only a complete file replaces an older one.

    Args:
        path: .png a labelled grid; .npz `arr_0` (the images as they are) and `arr_1` (labels, int32), as the
            ADM evaluation suite reads them; .gif or .webp an animation. Missing folders are made.
        images: uint8 [N, H, W, C]; for an animation [frames, N, H, W, C]; for an .npz of latents float32.
        labels: [N] class numbers.
        names: captions of the class numbers.

    Raises:
        InputError: see `check_output` and `grid`; no room on the disk.
    """
    path = check_output(path)
    labels = np.asarray(labels, np.int32)
    replace_file(path, lambda file: WRITERS[path.suffix](file, np.asarray(images), labels, names))


def replace_file(path: Path, make: Callable[[Path], None]) -> None:
    """Makes a file beside `path`, with its ending, and puts it there when it is complete.

    Raises:
        InputError: no room on the disk. What was drawn is not lost: the file is in the system's folder for
            temporary files then, if that has room, and the error says where.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing") as folder:
            unfinished = Path(folder) / path.name
            make(unfinished)
            unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}; {_make_elsewhere(path, make)}") from error


def _make_elsewhere(path: Path, make: Callable[[Path], None]) -> str:
    """Makes the file where it is not asked for, and says where."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="pom_jax-"))
    except OSError as error:
        return f"nor can a folder for temporary files be made ({error.strerror}): make room, and draw again"
    try:
        make(folder / path.name)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return f"nor can {folder} ({error.strerror}): make room, and draw again"
    return f"it is {folder / path.name} instead"
