"""Files with captions, clips or pictures: from a table, a folder and a table, or with a text beside each."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pom_jax.data.pictures import find_pictures
from pom_jax.data.recipe import Piece, cut, hold_out
from pom_jax.errors import InputError

TEXT = ".txt"  # ends the name of the caption beside a file


@dataclass(frozen=True)
class Captioned:
    """Files with captions, none of them read yet.

    Attributes:
        name: of the folder or table.
        folder: where the files are.
        names: of each file, its path in the folder.
        caption: gives the caption of an index, "" if there is none.
        fingerprint: a checksum over names and, of a table, captions; what is in the files is not looked at.
        others: files of the folder that are left out because of their endings: ending -> how many.
    """

    name: str
    folder: Path
    names: Sequence[str]
    caption: Callable[[int], str]
    fingerprint: str
    others: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.names)

    def refusal(self, index: int) -> str | None:
        """Why a file cannot be used because of its caption; None if it can."""
        try:
            return None if self.caption(index) else "no caption"
        except (OSError, UnicodeDecodeError) as error:
            return f"its caption cannot be read: {error}"


def open_captioned(
    source: str | os.PathLike[str], table: str | os.PathLike[str] | None, endings: tuple[str, ...], unit: str
) -> Captioned:
    """Looks which files and captions there are.

    Args:
        source: a .csv with the columns path (relative to it) and caption, or a folder, searched with all
            below it.
        table: of a folder: such a .csv, with paths relative to the folder. Files that it does not name have
            no caption. None: the caption of a.mp4 is in a.txt beside it.
        endings: of the files to look for in a folder.
        unit: what they are called in messages, e.g. "clips".

    Raises:
        InputError: none of these, no files, a table that is none.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv" and path.is_file():
        if table is not None:
            raise InputError(f"--source={path} is a table: give the folder of the {unit}, or no --captions")
        names, captions = read_table(path)
        return _listed(path.stem, path.parent, names, captions, Counter())
    if not path.is_dir():
        what = "is no folder and no .csv" if path.exists() else "does not exist"
        raise InputError(
            f"--source={path} {what}: give a folder of {unit}, or a .csv with columns path,caption"
        )
    others: Counter[str] = Counter()
    search = endings if table is not None else (*endings, TEXT)
    paths = sorted(os.path.relpath(one, path) for one in find_pictures(path, others, search))
    found = [one for one in paths if one.lower().endswith(endings)]
    name = path.resolve().name
    if table is not None:
        names, captions = read_table(Path(table))
        named = set(names)
        without = [one for one in found if one not in named]
        return _listed(name, path, [*names, *without], [*captions, *[""] * len(without)], others)
    if not found:
        raise InputError(f"--source={path} holds no {unit} ({', '.join(endings)})")

    texts = {os.path.splitext(one)[0] + TEXT for one in found}
    others.update(os.path.splitext(one)[1] for one in set(paths).difference(found, texts))

    def caption(index: int) -> str:
        text = (path / found[index]).with_suffix(TEXT)
        return _one_line(text.read_text(encoding="utf-8-sig")) if text.is_file() else ""

    return Captioned(name, path, found, caption, _fingerprint(found, ["beside"]), others)


def read_table(path: Path) -> tuple[list[str], list[str]]:
    """Paths and captions of a .csv with these columns among others.

    Raises:
        InputError: no such table, or a line without its path.
    """
    names, captions = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, skipinitialspace=True)
            columns = [column.strip() for column in next(rows, [])]
            if not {"path", "caption"} <= set(columns):
                raise InputError(
                    f"{path} needs a first line with the columns path,caption; found {','.join(columns)!r}"
                )
            place, words = columns.index("path"), columns.index("caption")
            for row in filter(None, rows):
                if len(row) <= place or not row[place].strip():
                    raise InputError(f"{path}: line {rows.line_num} lacks its path")
                if len(row) > len(columns):
                    raise InputError(
                        f"{path}: line {rows.line_num} has {len(row)} entries for {len(columns)} columns: "
                        "put captions with commas into quotes"
                    )
                names.append(os.path.normpath(row[place].strip()))
                captions.append(_one_line(row[words]) if len(row) > words else "")
    except OSError as error:
        raise InputError(f"table {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no table in UTF-8: {error}") from error
    if not names:
        raise InputError(f"{path} has no line but its first")
    return names, captions


def share_out(
    train: Captioned, test: Captioned | None, share: float, shard: int, seed: int, unit: str
) -> tuple[dict[str, Captioned], tuple[Piece, ...], str]:
    """Which file goes into which shard; a file with several captions stays on one side.

    Args:
        train, test: the files; without `test` a `share` of `train` is held out.
        shard: files of a shard.
        seed: of the choice and of the order.
        unit: what they are called in messages.

    Returns:
        The source of each split, all pieces, and what is held out, in words.

    Raises:
        InputError: numbers out of range, or a share that leaves nothing on one side.
    """
    if shard < 1 or seed < 0:
        raise InputError(f"--shard-{unit}={shard} must be at least 1, --seed={seed} at least 0")
    rng = np.random.default_rng(seed)
    if test is None:
        files, owner = np.unique(np.array(train.names), return_inverse=True)
        _, held = hold_out(np.zeros(len(files), np.int32), share, rng, unit)
        out = np.isin(owner, held)
        indices = {"train": np.flatnonzero(~out), "test": np.flatnonzero(out)}
        sources, held_out = {"train": train, "test": train}, f"{share:g} of all"
    else:
        sources, held_out = {"train": train, "test": test}, f"{len(test)} {unit} {test.fingerprint}"
        indices = {split: np.arange(len(found)) for split, found in sources.items()}
    pieces = [piece for split in sources for piece in cut(split, rng.permutation(indices[split]), shard)]
    return sources, tuple(pieces), held_out


def _listed(
    name: str, folder: Path, names: Sequence[str], captions: Sequence[str], others: Counter[str]
) -> Captioned:
    return Captioned(name, folder, names, captions.__getitem__, _fingerprint(names, captions), others)


def _fingerprint(names: Sequence[str], captions: Sequence[str]) -> str:
    text = "\n".join([*names, "", *captions])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _one_line(text: str) -> str:
    return " ".join(text.split())
