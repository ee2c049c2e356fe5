"""Pictures to make a data set of: a folder, a table of paths or an npz; read singly, cropped as ADM does."""

import csv
import hashlib
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from pom_jax.errors import BROKEN_NPZ, InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

# What Pillow raises for files that are no pictures, cut or broken, or blow up beyond all memory.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
UNREADABLE += (Image.DecompressionBombError,)

TURNS = {  # of each EXIF orientation, what sets it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ONE_CLASS = ("all",)
LONGEST = 100  # sides of a crop that a picture may be long: one of 1 x 60,000 pixels would become gigabytes


@dataclass(frozen=True)
class Skipped:
    """A picture or clip that is left out: it cannot be used, or (no reason) is smaller than was asked for."""

    name: str
    reason: str | None = None


@dataclass(frozen=True)
class Pictures:
    """Pictures with labels, none of them read yet.

    Attributes:
        name: of the folder or file.
        names: of each picture, such as its path in the folder.
        labels: [N] int32.
        classes: the name of each label, in order.
        open: gives the picture of an index.
        others: files of the folder that are left out because of their endings: ending -> how many.
    """

    name: str
    names: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    open: Callable[[int], Image.Image]
    others: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """A checksum over names, labels and classes; what the pictures show is not looked at."""
        digest = hashlib.sha256("\n".join([*self.classes, "", *self.names]).encode("utf-8", "replace"))
        digest.update(self.labels.astype("<i4").tobytes())
        return digest.hexdigest()[:16]

    def crop(self, index: int, size: int, min_size: int = 0) -> np.ndarray | Skipped:
        """One picture by `read_crop`, as ADM does: an EXIF orientation turns nothing."""
        return read_crop(lambda: self.open(index), self.names[index], size, min_size)


def read_crop(
    open_picture: Callable[[], Image.Image], name: str, size: int, min_size: int = 0, *, turn: bool = False
) -> np.ndarray | Skipped:
    """One picture by `centre_crop`, [size, size, 3] uint8; safe to call from several threads.

    Args:
        open_picture: opens it.
        name: of its file, for `Skipped`.
        size: pixels of the crop's side.
        min_size: a picture whose shorter side has fewer pixels is skipped.
        turn: set it upright first, as its EXIF orientation says.
    """
    try:
        with open_picture() as picture:
            if min(picture.size) < min_size:
                return Skipped(name)
            return centre_crop(upright(picture) if turn else picture, size)
    except UNREADABLE as error:
        return Skipped(name, f"{type(error).__name__}: {error}")


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; as it is where there is none or EXIF is damaged.

    `ImageOps.exif_transpose` writes all of EXIF anew, and fails in many ways where some of it is damaged.
    """
    picture.load()  # a TIFF is turned by that
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except UNREADABLE:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def centre_crop(picture: Image.Image, size: int) -> np.ndarray:
    """ADM's crop: halved while the shorter side is twice `size` or more, then bicubic, then the middle.

    Returns:
        [size, size, 3] uint8.

    Raises:
        ValueError: one side is more than LONGEST times the other; see `rgb` too.
    """
    return cover_crop(picture, size, size)


def cover_crop(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """ADM's crop of any shape: halved while it stays large enough, then bicubic to cover it, then the middle.

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: a side is more than LONGEST times the crop's; see `rgb` too.
    """
    picture = rgb(picture)
    while picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(height / picture.height, width / picture.width)
    covered = round(picture.width * scale), round(picture.height * scale)
    if covered[0] > LONGEST * width or covered[1] > LONGEST * height:
        raise ValueError(f"one side is more than {LONGEST} times the other")
    pixels = np.asarray(picture.resize(covered, Image.Resampling.BICUBIC))
    top, left = (covered[1] - height) // 2, (covered[0] - width) // 2
    return pixels[top : top + height, left : left + width]


def rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB; of one in colour with 16 bits a channel the upper 8.

    Raises:
        ValueError: grey with more than 8 bits, which Pillow would not scale but clip.
    """
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"mode {picture.mode} has more than 8 bits a channel; convert it to 8")
    return picture.convert("RGB")


def open_pictures(source: str | os.PathLike[str]) -> Pictures:
    """Looks which pictures there are.

    Args:
        source: a folder with a subfolder for each class (searched with all below them; classes are the sorted
            names of the subfolders), a folder of pictures (one class), a .csv with the columns `path`
            (relative to it) and `label` (optional), or an .npz as ADM's: `arr_0` uint8 [N, H, W, 3], `arr_1`
            the labels, if there.

    Raises:
        InputError: none of these, no pictures, an empty class.
    """
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a folder of pictures, a .csv or an .npz")
    if path.suffix.lower() == ".csv":
        return _open_table(path)
    if path.suffix.lower() == ".npz":
        return _open_npz(path)
    raise InputError(f"{path} is no folder, .csv or .npz; give one of these")


def _open_folder(folder: Path) -> Pictures:
    entries = list(os.scandir(folder))
    others: Counter[str] = Counter()
    flat = _pictures_among([entry.name for entry in entries if not entry.is_dir()], others)
    classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if flat and classes:
        raise InputError(
            f"{folder} holds both pictures ({min(flat)}) and folders ({classes[0]}): move the pictures into "
            "folders, one a class, or the folders away"
        )
    if not classes:
        if not flat:
            raise InputError(f"{folder} holds no pictures ({', '.join(ENDINGS)}) and no folders of them")
        return _from_paths(folder, folder.name, sorted(flat), [0] * len(flat), ONE_CLASS, others)
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = sorted(os.path.relpath(path, folder) for path in find_pictures(folder / name, others))
        if not own:
            raise InputError(f"class folder {folder / name} holds no pictures; fill or remove it")
        names += own
        labels += [label] * len(own)
    return _from_paths(folder, folder.name, names, labels, tuple(classes), others)


def find_pictures(
    folder: str | os.PathLike[str], others: Counter[str] | None = None, endings: tuple[str, ...] = ENDINGS
) -> Iterator[str]:
    """Paths of the pictures of a folder and all below it, in any order; of other files by other endings.

    Links are followed, but not those that lead back; what begins with a dot is left out, as the files that
    macOS puts beside pictures.

    Args:
        others: where the files are counted that are left out because of their endings: ending -> how many.

    Raises:
        InputError: a folder that cannot be read.
    """
    others = Counter() if others is None else others
    for place, below, files in os.walk(folder, followlinks=True, onerror=_refuse):
        here = Path(place).resolve()
        inner = [one for one in below if not one.startswith(".")]
        below[:] = [one for one in inner if not here.is_relative_to((here / one).resolve())]
        yield from (os.path.join(place, file) for file in _pictures_among(files, others, endings))


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}); make it readable or remove it")


def _pictures_among(
    files: Sequence[str], others: Counter[str], endings: tuple[str, ...] = ENDINGS
) -> list[str]:
    """The names that end as a picture's; the endings of the others are counted, but for hidden ones."""
    seen = [name for name in files if not name.startswith(".")]
    others.update(os.path.splitext(name)[1] for name in seen if not name.lower().endswith(endings))
    return [name for name in seen if name.lower().endswith(endings)]


def _open_table(path: Path) -> Pictures:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no table in UTF-8: {error}") from error
    if not rows or "path" not in rows[0]:
        raise InputError(f"{path} needs a first line with the columns path,label and a line for each picture")
    if "label" not in rows[0] and len(rows[0]) > 1:
        raise InputError(
            f"{path} has the columns {', '.join(map(str, rows[0]))}: name one of them label, or leave "
            "only path for pictures of one class"
        )
    words = list(ONE_CLASS) * len(rows)
    if "label" in rows[0]:
        words = [(row["label"] or "").strip() for row in rows]
    for line, (row, word) in enumerate(zip(rows, words, strict=True), start=2):
        if not row["path"] or not word:
            raise InputError(f"{path}: line {line} lacks its {'label' if row['path'] else 'path'}")
    numbers = all(word.isascii() and word.isdigit() for word in words)
    classes = sorted(set(words), key=int if numbers else None)
    label_of = {word: label for label, word in enumerate(classes)}
    labels = [label_of[word] for word in words]
    return _from_paths(path.parent, path.stem, [row["path"] for row in rows], labels, tuple(classes))


def _from_paths(
    folder: Path,
    name: str,
    names: Sequence[str],
    labels: Sequence[int],
    classes: tuple[str, ...],
    others: Counter[str] | None = None,
) -> Pictures:
    def open_picture(index: int) -> Image.Image:
        return Image.open(folder / names[index])

    name = name or folder.resolve().name
    return Pictures(name, names, np.array(labels, np.int32), classes, open_picture, others or Counter())


def _open_npz(path: Path) -> Pictures:
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = np.asarray(archive["arr_1"]) if "arr_1" in archive.files else None
        images = _mapped(path, "arr_0.npy")
    except BROKEN_NPZ as error:
        raise InputError(f"{path} is no whole npz with images in arr_0: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise InputError(
            f"{path}: arr_0 is {images.dtype} {list(images.shape)}; images are uint8 [N, H, W, 3]"
        )
    count = len(images)
    if found is not None and (found.shape != (count,) or found.dtype.kind not in "iu" or found.min() < 0):
        raise InputError(
            f"{path}: arr_1 is {found.dtype} {list(found.shape)}; labels are {count} whole numbers from 0"
        )
    labels = np.zeros(count, np.int32) if found is None else found.astype(np.int32)
    classes = ONE_CLASS if found is None else tuple(str(label) for label in range(int(labels.max()) + 1))
    names = [f"{path.name}[{index}]" for index in range(count)]
    return Pictures(path.stem, names, labels, classes, lambda index: Image.fromarray(images[index]))


def _mapped(path: Path, member: str) -> np.ndarray:
    """An array of an npz that lies in memory only where it is touched, unless the file is compressed."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            with archive.open(member) as packed:
                return np.lib.format.read_array(packed, allow_pickle=False)
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # the lengths of two fields that stand before the content
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        old = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
        order = "F" if by_columns else "C"
        return np.memmap(file, dtype, "r", offset=file.tell(), shape=shape, order=order)
