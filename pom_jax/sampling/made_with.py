"""What the latents and embeddings that a run has learned from were made with, and whether that is given."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from pom_jax.data import read_manifest
from pom_jax.errors import InputError

Say = Callable[[str], None]


def made_with(config: ConfigDict, say: Say = print) -> Mapping[str, Any]:
    """`Manifest.encoding` of the data that a run has learned from; {} where it is not known.

    Args:
        config: of the run, which keeps it. Of a run from before it was kept the folder of the data tells it,
            if it is there and holds what the run has learned from.
        say: is told that it is not known, and why.
    """
    if isinstance(kept := config.data.get("encoding"), ConfigDict):  # by hand it can be made null
        return kept.to_dict()
    folder, digest = config.data.dir, config.data.get("digest", "")
    try:
        manifest = read_manifest(folder)
    except InputError:
        why = f"its data (data.dir={folder}) is not here"
    else:
        if digest in ("", manifest.digest):
            return manifest.encoding
        why = (
            f"the data in {folder} (checksum {manifest.digest}) is not what it has learned from (checksum "
            f"{digest})"
        )
    say(f"note: what the data of this run was encoded with is not known: its config.json lacks it, and {why}")
    return {}


def check_made_with(
    name: str, folder: str | os.PathLike[str], sha256: str, encoding: Mapping[str, Any]
) -> None:
    """Raises an InputError for another encoder than that of the data, where the data tells its checksum.

    Args:
        name: "autoencoder" or "text_encoder".
        folder: that is given.
        sha256: of its weights.
        encoding: of the data, see `made_with`.
    """
    wanted = encoding.get(name) or ""
    if "sha256" in wanted and sha256 not in wanted:
        raise InputError(
            f"--{name}={folder} has weights of sha256 {sha256}, and the data of this run was made with "
            f"{wanted}: give that one; if they are the same weights in other files, such as in parts, set "
            f'{name} in the manifest.json of the data to "", and data.encoding.{name} in the run\'s '
            "config.json, where these are"
        )
