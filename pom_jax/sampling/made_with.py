"""What the latents and embeddings that a run has learned from were made with."""

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
    if "encoding" in config.data:
        return config.data.encoding.to_dict()
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
