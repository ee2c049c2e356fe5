"""Parameters of one network as the start of another with the same layers: other sizes, other classes."""

from typing import Any

import jax
import jax.numpy as jnp

from pom_jax.nn import blocks, text_block
from pom_jax.nn.embeddings import resize_positions

POSITIONS = ("positions", "condition_positions")  # [H, W, D] on the native grid
CLASSES = "class_embedding/table"  # [classes + 1, D], the null class last
GATES = {6: blocks.GATES, 11: text_block.GATES}  # by the number of vectors that modulate a block


def fit_parameters(old: Any, new: Any, *, gates: float = 0.0, new_classes: bool = False) -> Any:
    """Fits parameters to another network; which ones change, and how, `compare` says in words.

    Position tables go to the new grid by the antialiased bicubic resampling of the authors'
    upscale_checkpoint.py, each tree its own (there, the averages get the tables of the trained parameters).
    With another number of classes, or `new_classes`, their rows are the new ones and the row of the null
    class is kept.

    Args:
        old: parameters, nested dicts of arrays, that fit the network (`compare` finds nothing wrong).
        new: fresh parameters of the network.
        gates: added to the biases of all gates: 1 from a network with `unit_gates` to one without, for the
            same function, and -1 back.
        new_classes: as many classes are others, too.

    Returns:
        A tree like `new`; whatever else has the same shape in both is that of `old`, bit for bit.
    """
    olds = _by_name(old)

    def fit(path: tuple, new: jax.Array) -> jax.Array:
        name = _name(path)
        old = olds[name]
        if gates and name.startswith("blocks/") and name.endswith("modulation/bias"):
            return old.at[..., jnp.array(GATES[old.shape[-2]]), :].add(gates)
        if old.shape == new.shape and not (new_classes and name == CLASSES):
            return old
        if name in POSITIONS:
            return resize_positions(old, new.shape[0], new.shape[1])
        return new.at[-1].set(old[-1])

    return jax.tree.map_with_path(fit, new)


def compare(old: Any, new: Any) -> tuple[list[str], list[str]]:
    """What `fit_parameters` changes of `old`, and what of it does not fit `new`: lines for people.

    Args:
        old, new: trees of arrays or of their shapes.
    """
    olds, news = _by_name(old), _by_name(new)
    changes, misfits = [], []
    for name in sorted(olds.keys() | news.keys()):
        there, here = (tuple(tree[name].shape) if name in tree else None for tree in (olds, news))
        if there == here:
            continue
        if there is None or here is None or len(there) != len(here) or there[-1] != here[-1]:
            misfits.append(f"{name}: {_words(there)} there, {_words(here)} here")
        elif name in POSITIONS:
            changes.append(f"{name}: resampled from {there[0]} x {there[1]} to {here[0]} x {here[1]}")
        elif name == CLASSES:
            changes.append(
                f"{name}: {here[0] - 1:,} classes anew for the {there[0] - 1:,} there, the null class kept"
            )
        else:
            misfits.append(f"{name}: {_words(there)} there, {_words(here)} here")
    return changes, misfits


def _by_name(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _words(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))
