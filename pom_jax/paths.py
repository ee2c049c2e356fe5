"""Paths as people write them."""

import argparse
import os
from pathlib import Path
from typing import Any

from absl import flags

from pom_jax.errors import InputError
from pom_jax.remote import ADDRESS, check_address

# Fields of a configuration that name files or folders, and those that may be in a bucket.
FIELDS = ("data.dir", "init_from", "train.remote", "fid.reference", "fid.inception", "fid.autoencoder")
REMOTE = ("init_from", "train.remote")

# What to do where an address is given that cannot be used.
INSTEAD = {
    "--workdir": "mount the bucket (gcsfuse, mountpoint-s3) and give the folder where it is mounted; or keep "
    "the workdir here and the checkpoints there, with --config.train.remote=gs://bucket/folder",
    "--config.data.dir": "the reader of ArrayRecord files knows no buckets: copy the data set to a disk of "
    "each machine (gcloud storage cp --recursive, aws s3 cp --recursive) and give that folder",
}
MOUNT = "mount the bucket (gcsfuse, mountpoint-s3) and give the folder where it is mounted"


def local_path(name: str, path: str) -> str:
    """A path with ~ as the home folder.

    Args:
        name: the flag or field that it comes from, for the message.
        path: as it was given.

    Raises:
        InputError: an address such as gs://bucket/run, which is no folder of a file system.
    """
    if ADDRESS.match(path):
        reason = ", and rows and log lines are added to files" if name == "--workdir" else ""
        raise InputError(f"{name}={path} is no folder of a file system{reason}; {INSTEAD.get(name, MOUNT)}")
    return os.path.expanduser(path)


def run_path(name: str, path: str) -> str:
    """The same of a run that is only read, or of its checkpoints: gs://bucket/folder is one too."""
    return check_address(name, path) if ADDRESS.match(path) else local_path(name, path)


def argument_path(text: str) -> Path:
    """The same of a flag of argparse, which names it in its messages itself."""
    if ADDRESS.match(text):
        raise argparse.ArgumentTypeError(f"{text} is no folder of a file system; {MOUNT}")
    return Path(os.path.expanduser(text))


def expand_paths(config: Any) -> None:
    """Does the same to all paths of a configuration, in place."""
    for field in FIELDS:
        section, _, last = field.rpartition(".")
        fields = config[section] if section else config
        expand = run_path if field in REMOTE else local_path
        fields[last] = expand(f"--config.{field}", fields[last])


def expand_flags(*names: str, runs: tuple[str, ...] = ()) -> None:
    """Does the same to absl flags, where they are given; `runs` are those of runs that are only read."""
    for name in (*names, *runs):
        value: str | list[str] | None = flags.FLAGS[name].value
        expand = run_path if name in runs else local_path
        if isinstance(value, list):
            flags.FLAGS[name].value = [expand(f"--{name}", part) for part in value]
        elif value is not None:
            flags.FLAGS[name].value = expand(f"--{name}", value)
