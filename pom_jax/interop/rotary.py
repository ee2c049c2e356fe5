"""The rotary tables that the authors keep in the state dict: read back as a `Rotary`, and written.

`freqs_cos`, `freqs_sin` [positions, E/2] on one axis; `row_cos`, `row_sin` [rows, E/4] and `col_cos`,
`col_sin` [columns, E/4] on two. All follow from the number of axes, the base and the number of positions.
"""

import math
from collections.abc import Collection, Mapping

import jax.numpy as jnp
import numpy as np

from pom_jax.errors import InputError
from pom_jax.ops.rotary import Rotary

# The names of each axis' tables by the number of axes, and how many positions the authors give an axis.
AXES = {1: ("freqs",), 2: ("row", "col")}
POSITIONS = {1: (4096,), 2: (64, 64)}


def table_names(axes: int) -> tuple[str, ...]:
    """Of positions on one or two axes."""
    return tuple(f"{axis}_{part}" for axis in AXES[axes] for part in ("cos", "sin"))


def table_axes(names: Collection[str]) -> int | None:
    """How many axes the tables among these names have; None without tables."""
    return next((axes for axes in AXES if any(name in names for name in table_names(axes))), None)


def table_shapes(tables: Mapping[str, np.ndarray], axes: int, expanded: int) -> dict[str, tuple[int, int]]:
    """The shapes that go with E; the number of positions is as it is in the cosines."""
    shapes = {}
    for axis in AXES[axes]:
        positions = tables[f"{axis}_cos"].shape[0] if tables[f"{axis}_cos"].ndim else 1
        shapes |= {f"{axis}_{part}": (positions, expanded // (2 * axes)) for part in ("cos", "sin")}
    return shapes


def read_rotary(tables: Mapping[str, np.ndarray], axes: int, wanted: Rotary | None) -> Rotary:
    """The positions that these tables belong to.

    Args:
        tables: all tables for that many axes, of one E, in any floating-point dtype.
        wanted: what they have to be; None finds the base.

    Raises:
        InputError: they are no tables of rotary positions, or of others than wanted.
    """
    tried = (wanted,) if wanted else (Rotary(axes), Rotary(axes, _base(tables, axes)))
    for rotary in tried:
        if rotary.axes == axes and _agree(tables, rotary):
            return rotary
    said = f"those of {wanted}" if wanted else "those of any base"
    raise InputError(
        f"the rotary tables {', '.join(table_names(axes))} are not {said}; to go without them, leave them "
        f"out and pass rotary=Rotary(axes={axes}, base=...)"
    )


def write_rotary(rotary: Rotary, expanded: int, positions: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The tables, float32; the authors' differ in the last bits, by up to 1e-3 at position 4096.

    Args:
        rotary: on one or two axes.
        expanded: E.
        positions: their number on each axis.
    """
    half = expanded // (2 * rotary.axes)
    frequencies = (rotary.base ** -(np.arange(half) / half)).astype(np.float32)
    tables = {}
    for axis, count in zip(AXES[rotary.axes], positions, strict=True):
        angles = np.arange(count, dtype=np.float32)[:, None] * frequencies
        tables |= {f"{axis}_cos": np.cos(angles), f"{axis}_sin": np.sin(angles)}
    return tables


def _base(tables: Mapping[str, np.ndarray], axes: int) -> float:
    """Of the geometric series of angles at position 1, to the six digits that float32 tables tell."""
    cos, sin = max(
        ((tables[f"{a}_cos"], tables[f"{a}_sin"]) for a in AXES[axes]), key=lambda pair: len(pair[0])
    )
    half = cos.shape[1]
    if len(cos) < 2 or half < 2:
        return Rotary(axes).base
    angle = math.atan2(sin[1, half // 2], cos[1, half // 2])
    return float(f"{angle ** (-half / (half // 2)):.6g}") if angle > 0 else Rotary(axes).base


def _agree(tables: Mapping[str, np.ndarray], rotary: Rotary) -> bool:
    positions = tuple(len(tables[f"{axis}_cos"]) for axis in AXES[rotary.axes])
    first = next(iter(tables.values()))
    ours = write_rotary(rotary, first.shape[1] * 2 * rotary.axes, positions)
    rounding = float(max(jnp.finfo(array.dtype).eps for array in tables.values()))
    for name, array in ours.items():
        # Two roundings of the frequency and one of the angle, all in float32, grow with the position.
        allowed = rounding + 4e-7 * (1 + np.arange(len(array)))[:, None]
        if not np.all(np.abs(np.float64(array) - tables[name].astype(np.float64)) <= allowed):
            return False
    return True
