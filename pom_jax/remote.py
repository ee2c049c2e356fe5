"""Folders in buckets of Google Cloud Storage, gs://bucket/folder, where checkpoints are kept and read.

Runs write and read them as they do folders of a file system (`folder`), but for what differs: many objects
take as long as one, nothing can be renamed, and errors are those of a network.
"""

import importlib
import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from pom_jax.errors import InputError, first_line

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SCHEME = "gs://"
PACKAGES = ("gcsfs", "google.cloud.storage")  # the storage library reads through the first, asks the second
LIBRARIES = ("gcsfs", "google", "aiohttp", "requests", "urllib3")  # whose errors are of the way to a bucket

# What TensorStore says first of a bucket that does not answer or refuses.
UNREACHABLE = re.compile(
    r"(UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED):"
)
ACCESS = "check the network, log in (gcloud auth application-default login) or let the account in "
ACCESS += "(roles/storage.admin there)"


class Unreachable(InputError):
    """A bucket that does not answer, or refuses. It may answer soon: a restart loop tries again."""

    exit_code = 74  # EX_IOERR of sysexits.h


def is_remote(path: str | Path) -> bool:
    """Whether this is a folder or file of a bucket."""
    return str(path).startswith(SCHEME)


def check_address(name: str, path: str) -> str:
    """An address without the slash that may end it.

    Args:
        name: the flag or field that it comes from, for the message.
        path: as it was given.

    Raises:
        InputError: no folder of a bucket, of other clouds than Google's, or the packages are missing.
    """
    if path.startswith("s3://"):
        raise InputError(
            f"{name}={path}: Orbax {_version('orbax.checkpoint')} writes arrays to gs:// and to file systems "
            "alone; give gs://bucket/folder, or mount the bucket (mountpoint-s3) and leave this out"
        )
    if not re.fullmatch(r"gs://[^/\s]+/[^\s]*[^/\s]/*", path):
        raise InputError(f"{name}={path} must be gs://bucket/folder")
    _storage()
    return path.rstrip("/")


def check_bucket(name: str, path: str) -> None:
    """Raises InputError unless a run can keep its checkpoints there.

    It asks for the bucket as the storage library does when it deletes an old checkpoint, hours later.
    """
    path = check_address(name, path)
    exceptions = importlib.import_module("google.api_core.exceptions")
    storage = importlib.import_module("google.cloud.storage")
    retry = importlib.import_module("google.cloud.storage.retry").DEFAULT_RETRY.with_timeout(20)
    bucket = path.removeprefix(SCHEME).partition("/")[0]
    try:
        storage.Client().get_bucket(bucket, timeout=10, retry=retry)
    except exceptions.NotFound as error:
        raise InputError(
            f"{name}={path}: there is no bucket {bucket!r}, or this account may not see it; "
            f"gcloud storage buckets create gs://{bucket} makes one"
        ) from error
    except Exception as error:  # of the network, of the account, of the project
        raise InputError(f"{name}={path} cannot be used: {first_line(error)}; {ACCESS}") from error


def folder(path: str | Path) -> Path:
    """A folder of a file system, or one of a bucket, which is used in the same way.

    Raises:
        InputError: it is one of a bucket, and the packages are missing.
    """
    if not is_remote(path):
        return Path(path)
    _storage()
    return cast(Path, importlib.import_module("etils.epath").Path(str(path)))


def names(place: Path) -> set[str]:
    """Of all files and folders in one of a bucket; `Path.is_dir` and the like take any error for a no."""
    try:
        found = _storage().ls(str(place), detail=False)
    except FileNotFoundError:
        return set()
    return {path.rstrip("/").rpartition("/")[2] for path in found}


def read(path: Path) -> bytes | None:
    """What a file of a bucket holds; None where there is none.

    Raises:
        Unreachable: nobody knows.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except Exception as error:  # of the network, of the account
        if (said := trouble(error)) is None:
            raise
        raise Unreachable(f"{path} cannot be read: {said}; {ACCESS}") from error


def sizes(place: Path) -> dict[str, int]:
    """Bytes of all files of a bucket below a folder, by their names from there."""
    prefix = f"{str(place).removeprefix(SCHEME)}/"
    found = _storage().find(str(place), detail=True)
    return {path.removeprefix(prefix): file["size"] for path, file in sorted(found.items())}


def contents(place: Path, names: Sequence[str]) -> dict[str, bytes]:
    """What files of a bucket hold, all read at once."""
    if not names:
        return {}
    found = _storage().cat([f"{place}/{name}" for name in names], on_error="raise")
    if isinstance(found, bytes):  # of a single one
        return {names[0]: found}
    prefix = f"{str(place).removeprefix(SCHEME)}/"
    return {path.removeprefix(prefix): content for path, content in found.items()}


def move(place: Path, to: Path) -> None:
    """Moves a folder within a bucket; the copying is done by the service."""
    names = list(sizes(place))
    _storage().copy([f"{place}/{name}" for name in names], [f"{to}/{name}" for name in names])
    _storage().rm([f"{place}/{name}" for name in names])


def write(path: Path, text: str) -> None:
    """Writes a file of a bucket, which nobody sees before it is whole.

    Raises:
        Unreachable: the bucket is not there, does not answer, or this account may not write to it.
    """
    try:
        path.write_text(text)
    except Exception as error:  # of the network, of the account
        said = "there is no such bucket" if isinstance(error, FileNotFoundError) else trouble(error)
        if said is None:
            raise
        raise Unreachable(f"{path} cannot be written: {said}; {ACCESS}") from error


def trouble(error: BaseException) -> str | None:
    """What an error says of the way to a bucket; None if it says something of the files there."""
    said = first_line(error)
    if isinstance(error, FileNotFoundError):
        return None
    library = type(error).__module__.partition(".")[0] in LIBRARIES
    refused = isinstance(error, OSError) and said.startswith("Forbidden")  # of gcsfs
    if library or refused or (SCHEME in str(error) and UNREACHABLE.match(said)):
        return said
    return None


@cache
def _storage() -> Any:
    """The file system of all buckets."""
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"gs:// needs the package {package.replace('.', '-')}: pip install -e '.[gcs]'"
            ) from error
    fsspec = importlib.import_module("fsspec")
    # Arrays are written past it, and by other machines: what it remembers of a folder may be old.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # a traceback of each error that it also raises
    return fsspec.filesystem("gcs", finalize_on_close=True)  # the one of the storage library


def _version(module: str) -> str:
    return importlib.import_module(module).__version__
