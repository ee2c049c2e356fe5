"""Folders in buckets of Google Cloud Storage, gs://bucket/folder, where checkpoints are kept and read.

Runs write and read them as they do folders of a file system (`folder`), but for what differs: many objects
take as long as one, nothing can be renamed, and errors are those of a network.
"""

import contextlib
import importlib
import logging
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from pom_jax.errors import InputError, first_line

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SCHEME = "gs://"
PACKAGES = ("gcsfs", "google.cloud.storage")  # the storage library reads through the first, asks the second
# Whose errors are of the way to a bucket; where TensorFlow is installed, Orbax has it read small files.
LIBRARIES = ("gcsfs", "google", "aiohttp", "requests", "urllib3", "tensorflow")

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
    return address(path).startswith(SCHEME)


def address(path: str | Path) -> str:
    """As it was before `pathlib.Path` made one slash of two."""
    return re.sub(r"^gs:/+", SCHEME, str(path))


def flag(workdir: str | Path) -> str:
    """By which a run is told to keep its checkpoints elsewhere, for messages."""
    return "--config.train.remote" if is_remote(workdir) else "--workdir"


def check_address(name: str, path: str) -> str:
    """An address without the slash that may end it.

    Args:
        name: the flag or field that it comes from, for the message.
        path: as it was given.

    Raises:
        InputError: no folder of a bucket, of other clouds than Google's, or the packages are missing.
    """
    if path.startswith("s3://"):
        mounted = "as --workdir, and leave this out" if name.endswith("train.remote") else "here"
        raise InputError(
            f"{name}={path}: Orbax {_version('orbax.checkpoint')} writes arrays to gs:// and to file systems "
            "alone; give gs://bucket/folder, or mount the bucket (mountpoint-s3) and give the folder where "
            f"it is mounted {mounted}"
        )
    if not re.fullmatch(r"gs://[^/\s*?\[\]#]+/[^\s*?\[\]#]*[^/\s*?\[\]#]/*", path):
        raise InputError(f"{name}={path} must be gs://bucket/folder, without blanks and *?[]#")
    _storage()
    return path.rstrip("/")


def check_bucket(name: str, path: str) -> None:
    """Raises InputError unless a run can keep its checkpoints there; Unreachable where that may change soon.

    It asks for the bucket as the storage library does when it deletes an old checkpoint, hours later.
    """
    path = check_address(name, path)
    exceptions = importlib.import_module("google.api_core.exceptions")
    login = importlib.import_module("google.auth.exceptions")
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
        refusals = exceptions.Forbidden, exceptions.Unauthorized, login.DefaultCredentialsError
        kind = InputError if isinstance(error, refusals) else Unreachable
        raise kind(f"{name}={path} cannot be used: {first_line(error)}; {ACCESS}") from error


def folder(path: str | Path) -> Path:
    """A folder of a file system, or one of a bucket, which is used in the same way.

    Raises:
        InputError: it is one of a bucket, and the packages are missing.
    """
    if not is_remote(path):
        return Path(path)
    _storage()
    return cast(Path, importlib.import_module("etils.epath").Path(address(path)))


def names(place: Path) -> set[str]:
    """Of all files and folders in one of a bucket; `Path.is_dir` and the like take any error for a no.

    Raises:
        Unreachable: nobody knows.
    """
    try:
        with _reaching(place, "listed"):
            found = _storage().ls(str(place), detail=False)
    except FileNotFoundError:
        return set()
    # gcsfuse and the console keep an empty object for the folder itself.
    itself = str(place).removeprefix(SCHEME)
    return {path.rpartition("/")[2] for path in found if path != itself}


def read(path: Path) -> bytes | None:
    """What a file of a bucket holds; None where there is none.

    Raises:
        Unreachable: nobody knows.
    """
    try:
        with _reaching(path, "read"):
            return _storage().cat_file(str(path))
    except FileNotFoundError:
        return None


def sizes(place: Path) -> dict[str, int]:
    """Bytes of all files of a bucket below a folder, by their names from there."""
    prefix = f"{str(place).removeprefix(SCHEME)}/"
    found = _storage().find(str(place), detail=True)
    files = sorted((path, file["size"]) for path, file in found.items() if not path.endswith("/"))
    return {path.removeprefix(prefix): size for path, size in files}


def contents(place: Path, names: Sequence[str]) -> dict[str, bytes]:
    """What files of a bucket hold, all read at once."""
    if not names:
        return {}
    found = _storage().cat([f"{place}/{name}" for name in names], on_error="raise")
    prefix = f"{str(place).removeprefix(SCHEME)}/"
    return {path.removeprefix(prefix): content for path, content in found.items()}


def move(place: Path, to: Path) -> None:
    """Moves a folder within a bucket; the copying is done by the service.

    Raises:
        Unreachable: some of it may have been copied.
    """
    with _reaching(place, "moved"):
        names = list(sizes(place))
        _storage().copy([f"{place}/{name}" for name in names], [f"{to}/{name}" for name in names])
        _storage().rm([f"{place}/{name}" for name in names])


def write(path: Path, text: str) -> None:
    """Writes a file of a bucket, which nobody sees before it is whole.

    Raises:
        Unreachable: the bucket is not there, does not answer, or this account may not write to it.
    """
    try:
        with _reaching(path, "written"):
            _storage().pipe_file(str(path), text.encode())
    except FileNotFoundError as error:
        raise Unreachable(f"{path} cannot be written: there is no such bucket; {ACCESS}") from error


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


@contextlib.contextmanager
def _reaching(place: Path, deed: str) -> Iterator[None]:
    """Within, errors of the way to a bucket are told as Unreachable: it cannot be read, say, the `deed`."""
    try:
        yield
    except Exception as error:  # of the network, of the account
        said = trouble(error)
        if said is None and not isinstance(error, TimeoutError | ConnectionError):
            raise
        said = said or f"no answer ({first_line(error)})"
        raise Unreachable(f"{place} cannot be {deed}: {said}; {ACCESS}") from error


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
