"""The list of leaves beside the arrays of a step: shape, dtype and digest of each.

The storage layer does not notice a flipped bit; the digests do.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from pom_jax import remote
from pom_jax.errors import InputError
from pom_jax.training import digest, metrics
from pom_jax.training.checkpoint.trouble import reading

ITEM = "leaves"  # of a step, beside its state
FILE = "metadata"  # in it


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read, or that is not what was written."""


@dataclasses.dataclass
class Description:
    """What is to be written of a state, which itself may be gone by then.

    Attributes:
        leaves: shape and dtype of each by name.
        digests: what waits for those of the leaves.
        rows: a file that is copied too.
        wrong: says which leaves are not finite, once that is known.
    """

    leaves: dict[str, dict[str, Any]]
    digests: Callable[[], dict[str, str]]
    rows: Path | None = None
    wrong: str = ""

    def write(self, folder: Path) -> None:
        """Waits for the digests, and writes all with a checksum over it; one process does.

        Of leaves that are not finite nothing is written.
        """
        try:
            words = self.digests()
        except digest.NotFinite as error:
            self.wrong = str(error)
            return
        if jax.process_index() == 0:
            leaves = {name: leaf | {"digest": words[name]} for name, leaf in self.leaves.items()}
            (folder / FILE).write_text(json.dumps({"leaves": leaves, "sha256": checksum(leaves)}))
            if self.rows is not None:
                (folder / metrics.FILE).write_bytes(self.rows.read_bytes())


def describe(state: Any, rows: Path | None = None) -> Description:
    """Begins to compute the digest of every leaf; a CPU does not wait for them.

    Raises:
        NotFinite: some are not, where that is known at once.
    """
    leaves = {
        digest.path_name(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return Description(leaves, digest.start_digests(state), rows)


class LeavesHandler(ocp.AsyncCheckpointHandler):
    """Writes a Description in the background, as a part of a checkpoint."""

    async def async_save(self, directory: Path, args: "SaveLeaves") -> list[Any]:
        self._description = args.description
        return [ocp.future.CommitFutureAwaitingContractedSignals(self._write(directory, args), name=ITEM)]

    async def _write(self, directory: Path, args: "SaveLeaves") -> None:
        args.description.write(directory)

    def save(self, directory: Path, args: "SaveLeaves") -> None:
        self._description = args.description
        args.description.write(directory)

    def finalize(self, directory: epath.Path) -> None:
        """Raises NotFinite here, when all is written, for what is half written nobody may remove."""
        if self._description.wrong:
            raise digest.NotFinite(self._description.wrong)

    def restore(self, directory: Path, args: Any = None) -> Any:
        return read_leaves(directory.parent)


@ocp.args.register_with_handler(LeavesHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class SaveLeaves(ocp.args.CheckpointArgs):
    """What the storage hands to LeavesHandler."""

    description: Description


def checksum(content: Mapping[str, Any]) -> str:
    """Of whatever JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@reading()
def read_leaves(step: Path) -> dict[str, Any]:
    """The leaves of the step in this folder, by name.

    Raises:
        DamagedCheckpoint: the list is missing, cut or changed.
        TroubledDisk: it cannot be read, whatever it holds.
    """
    try:
        description = json.loads((step / ITEM / FILE).read_text())
        leaves = description["leaves"]
        if description["sha256"] != checksum(leaves):
            raise ValueError("its checksum is wrong")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"the list of leaves, {ITEM}/{FILE}, cannot be read ({error})") from error
    return leaves


def verify(found: Mapping[str, str], leaves: Mapping[str, Any]) -> None:
    """Raises DamagedCheckpoint, with their names, unless the digests found are those that were saved."""
    wrong = digest.differing(found, {name: leaf["digest"] for name, leaf in leaves.items()})
    if wrong:
        raise DamagedCheckpoint(f"the numbers of {_some(wrong)} are not those that were saved")


def check_same_model(step: Path, leaves: Mapping[str, Any], target: Any) -> None:
    """Raises InputError unless the leaves of a step have the names, shapes and dtypes of `target`."""
    wanted = {
        digest.path_name(place): f"{list(leaf.shape)} {leaf.dtype}"
        for place, leaf in jax.tree_util.tree_leaves_with_path(target)
    }
    saved = {name: f"{leaf['shape']} {leaf['dtype']}" for name, leaf in leaves.items()}
    differing = [
        f"{name}: {saved.get(name, 'not there')} in the checkpoint, {wanted.get(name, 'not there')} here"
        for name in sorted(wanted.keys() | saved.keys())
        if wanted.get(name) != saved.get(name)
    ]
    if differing:
        raise InputError(
            f"the checkpoint {step} is of another model or optimiser; choose another {remote.flag(step)}.\n  "
            + _some(differing, separator="\n  ")
        )


def averages(leaves: Mapping[str, Any]) -> int:
    """How many averages of the parameters there are."""
    return len({name.split("/")[1] for name in leaves if name.startswith("ema/")})


def shapes_below(leaves: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The leaves whose names begin so, without it, as nested dicts of `jax.ShapeDtypeStruct`."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        if not name.startswith(prefix):
            continue
        *parents, last = name.removeprefix(prefix).split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
    return tree


def _some(items: list[str], separator: str = ", ", most: int = 8) -> str:
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join(items[:most] + more)
