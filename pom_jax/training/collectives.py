"""What a compiled program sends between devices, read from its text: kinds, bytes, and how often."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+).*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r"known_trip_count\D*(\d+)")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_ORDER = re.compile(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)")
_NAME = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")
_BOUND = re.compile(r"%?([\w.\-]+)\), direction=LT")
_DEVICES = re.compile(r"\bnum_partitions=(\d+)")
_ORIGIN = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation between devices, as each of them sees it.

    Attributes:
        kind: one of `KINDS`.
        bytes: of the array that it sums, gathers, scatters or moves: the gathered one of an all-gather, the
            one before the cut of a reduce-scatter.
        times: runs in one call of the program; a loop of unknown length counts as one turn.
        group: devices of the first group that takes part (of a permute, the first sender and receiver), by
            their places in `mesh.devices.flat`.
        shapes: of the arrays of its result on a device.
        origin: the operation of the traced program that it comes from, such as
            "jit(train_step)/transpose(jvp(DiPoM))/blocks/mixer/reduce_sum".
    """

    kind: str
    bytes: int
    times: int
    group: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    origin: str

    @property
    def total_bytes(self) -> int:
        """Of all its runs in one call of the program."""
        return self.bytes * self.times

    def axes(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
        """The axes of a mesh that it runs along.

        Args:
            mesh: its axes and sizes in order, `mesh.shape`.
        """
        places = np.unravel_index(self.group, tuple(mesh.values()))
        return tuple(name for name, along in zip(mesh, places, strict=True) if len(set(along.tolist())) > 1)


class _Instruction(NamedTuple):
    name: str
    result: str
    kind: str
    rest: str


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, in the order of its text.

    Args:
        text: `compiled.as_text()` of a program for several devices.

    Returns:
        One entry an operation; what runs as a start and a done counts once.
    """
    computations, entry = _computations(text)
    devices = _DEVICES.search(text)
    everyone = tuple(range(int(devices[1]) if devices else 1))
    times = _times(computations, entry)
    found = []
    for name, instructions in computations.items():
        by_name = {one.name: one for one in instructions}
        for one in instructions:
            kind = one.kind.removesuffix("-done")
            if kind not in KINDS or not times.get(name):
                continue
            # The start says who takes part, the done what came out.
            start = by_name.get(_first_operand(one.rest), one) if one.kind.endswith("-done") else one
            group = _group(start.rest) or everyone
            size = _bytes(one.result) * (len(group) if kind == "reduce-scatter" else 1)
            origin = _ORIGIN.search(start.rest)
            shapes = tuple(_sizes(cut) for _, cut in _ARRAY.findall(one.result))
            found.append(Collective(kind, size, times[name], group, shapes, origin[1] if origin else ""))
    return found


def total_bytes(found: Iterable[Collective]) -> int:
    """Of all runs of some collectives in one call of the program."""
    return sum(one.total_bytes for one in found)


def in_layers(found: Iterable[Collective], depth: int) -> dict[str, tuple[float, float]]:
    """What one layer of a scanned stack sends, forwards and backwards.

    Args:
        found: collectives of a program.
        depth: turns of its loops over layers, at least 2.

    Returns:
        By kind how many there are and their bytes, for one layer; what runs elsewhere is left out.
    """
    layers: dict[str, tuple[float, float]] = {}
    for one in found:
        if one.times % depth == 0:
            count, size = layers.get(one.kind, (0.0, 0.0))
            layers[one.kind] = count + one.times / depth, size + one.total_bytes / depth
    return layers


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation by its name, and which one is called."""
    found: dict[str, list[_Instruction]] = {}
    name = entry = ""
    for line in text.splitlines():
        if line[:1].strip() and not line.startswith("HloModule"):
            if header := _COMPUTATION.match(line):
                name = header[2]
                entry = name if header[1] else entry
                found[name] = []
        elif name and (match := _INSTRUCTION.match(line)):
            found[name].append(_Instruction(*match.groups()))
    return found, entry


def _times(computations: Mapping[str, list[_Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs in one call."""
    callers: dict[str, list[tuple[str, int]]] = {name: [] for name in computations}
    for name, instructions in computations.items():
        for one in instructions:
            turns = _turns(one, computations) if one.kind == "while" else 1
            # The done of an asynchronous call names the computation that its start has called.
            called = [] if one.kind in ("async-update", "async-done") else _CALLED.findall(one.rest)
            for branches in _BRANCHES.findall(one.rest):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for other in called:
                if other in callers:
                    callers[other].append((name, turns))
    known = {entry: 1}

    def count(name: str) -> int:
        if name not in known:
            known[name] = sum(count(caller) * turns for caller, turns in callers[name])
        return known[name]

    return {name: count(name) for name in computations}


def _turns(loop: _Instruction, computations: Mapping[str, list[_Instruction]]) -> int:
    """Of a loop whose text says it, or whose condition compares a counter with a constant; else 1."""
    if trips := _TRIPS.search(loop.rest):
        return int(trips[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    instructions = computations.get(condition[1], []) if condition else []
    constants = {one.name: one.rest.split(")")[0] for one in instructions if one.kind == "constant"}
    bounds = [_BOUND.search(one.rest) for one in instructions if one.kind == "compare"]
    known = [constants[bound[1]] for bound in bounds if bound and bound[1] in constants]
    return int(known[0]) if known and known[0].isdigit() else 1


def _first_operand(rest: str) -> str:
    match = re.search(r"%?([\w.\-]+)\)", rest)
    return match[1] if match else ""


def _sizes(listed: str) -> tuple[int, ...]:
    return tuple(int(size) for size in listed.split(",") if size)


def _bytes(result: str) -> int:
    """Of all arrays of a type such as "(f32[2,3]{1,0}, bf16[])"."""
    bits = 0
    for kind, listed in _ARRAY.findall(result):
        width = re.search(r"\d+", kind)
        bits += (int(width[0]) if width else 8) * math.prod(_sizes(listed))
    return bits // 8


def _group(rest: str) -> tuple[int, ...]:
    """The first group of devices; () where all are one."""
    if counted := _COUNTED.search(rest):
        shape, of = _sizes(counted[1]), _sizes(counted[2])
        places = np.arange(math.prod(of)).reshape(of)
        if counted[3]:
            places = places.transpose(_sizes(counted[3]))
        return tuple(places.reshape(shape)[0].tolist())
    if named := _NAMED.search(rest):
        group = _named_group(*named.groups())
        if order := _ORDER.search(named[0]):  # the devices that the mesh has in its places
            sizes = _sizes(order[1])
            devices = np.arange(math.prod(sizes)).reshape(sizes)
            devices = devices.transpose(_sizes(order[2])) if order[2] else devices
            group = tuple(devices.ravel()[list(group)].tolist())
        return group
    listed = _LISTED.search(rest)
    return _sizes(listed[1]) if listed else ()


def _named_group(mesh: str, along: str) -> tuple[int, ...]:
    """The first group along axes of a mesh: "'a'=2,'b'=8" and "'a','b':(2)4", of which the latter cuts b."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    shape, chosen = [], []
    wanted = {
        name: (int(before or 1), int(size or sizes[name])) for name, before, size in _NAME.findall(along)
    }
    for name, size in sizes.items():
        before, part = wanted.get(name, (size, 1))
        chosen.append(len(shape) + 1)
        shape += [before, part, size // before // part]
    places = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), chosen, range(-len(chosen), 0))
    return tuple(places.reshape(-1, math.prod(shape[index] for index in chosen))[0].tolist())
