"""Paths as people write them."""

import os
import re
from typing import Any

from absl import flags

from pom_jax.errors import InputError

# Fields of a configuration that name files or folders.
FIELDS = ("data.dir", "init_from", "fid.reference", "fid.inception", "fid.autoencoder")


def local_path(name: str, path: str) -> str:
    """A path with ~ as the home folder.

    Args:
        name: the flag or field that it comes from, for the message.
        path: as it was given.

    Raises:
        InputError: an address such as gs://bucket/run, which is no folder of a file system.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise InputError(
            f"{name}={path} is no folder of a file system, and rows and log lines are added to files; mount "
            "the bucket (gcsfuse, mountpoint-s3) and give the folder where it is mounted"
        )
    return os.path.expanduser(path)


def expand_paths(config: Any) -> None:
    """Does the same to all paths of a configuration, in place."""
    for field in FIELDS:
        section, _, last = field.rpartition(".")
        fields = config[section] if section else config
        fields[last] = local_path(f"--config.{field}", fields[last])


def expand_flags(*names: str) -> None:
    """Does the same to absl flags, where they are given."""
    for name in names:
        value: str | None = flags.FLAGS[name].value
        if value is not None:
            flags.FLAGS[name].value = local_path(f"--{name}", value)
