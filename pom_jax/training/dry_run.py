"""What a training step would cost on devices that are not there: compiled for them, and never run."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from pom_jax.data.manifest import FILE as MANIFEST
from pom_jax.errors import InputError
from pom_jax.ops.mesh import tracing_for
from pom_jax.training import memory
from pom_jax.training.collectives import Collective, collectives
from pom_jax.training.estimate import estimate
from pom_jax.training.run import Run, make_run

MOST_DEVICES = 4096


def make_devices(count: int) -> None:
    """Turns this process into a machine of `count` virtual CPU devices; before JAX's first computation.

    Raises:
        InputError: no sensible number.
    """
    if not 1 <= count <= MOST_DEVICES:
        raise InputError(f"--dry-run={count} must be a number of devices from 1 to {MOST_DEVICES}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def plan(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Iterator[str]:
    """Compiles the training step for abstract arrays and says what it costs, as lines come to be known.

    Without the data set of the config, its shapes are those of synthetic data. Nothing is read or written.

    Args:
        config: see configs/common.py.
        devices: what to compile for; all there are by default.

    Raises:
        InputError: a field, or the data, cannot be used.
    """
    run = make_run(with_data(config), devices)
    yield run.describe()
    step = run.flops
    yield (
        f"arithmetic of a step: {step / 1e12:,.3f} TFLOP, {step / run.mesh.size / 1e12:,.3f} of each device; "
        f"of the whole run {step * config.train.steps / 1e18:,.3f} EFLOP"
    )
    with jax.set_mesh(run.mesh):
        guess = estimate(run)
        with tracing_for("gpu"):
            elsewhere = estimate(run)
        compiled, line = run.compiled_step()
    yield line
    needed = memory.of_program(compiled, run.state, run.batch)
    yield memory.table(("compiled", needed), ("estimated", guess), ("on GPU or TPU", elsewhere))
    yield _communication(collectives(compiled.as_text()), run)


def with_data(config: ConfigDict) -> ConfigDict:
    """The config itself, or on synthetic data where its data set is not there."""
    there = config.data.dir and (Path(config.data.dir) / MANIFEST).is_file()
    if config.data.source == "synthetic" or there:
        return config
    config = config.copy_and_resolve_references()
    config.data.source = "synthetic"
    return config


def _communication(found: Sequence[Collective], run: Run) -> str:
    """The collectives by kind, axes of the mesh and number of turns."""
    if not found:
        return "collectives: none"

    def group(one: Collective) -> tuple[int, str, str]:
        return -one.times, one.kind, " x ".join(one.axes(run.mesh.shape)) or "none"

    header = ("along", 20), ("operations", 12), ("turns", 8), ("MiB a turn", 12), ("MiB", 12)
    lines = [f"{'collectives of a step':<24}" + "".join(f"{name:>{width}}" for name, width in header)]
    for (turns, kind, axes), ones in itertools.groupby(sorted(found, key=group), key=group):
        each = list(ones)
        size = sum(one.bytes for one in each) / 2**20
        row = f"  {kind:<22}{axes:>20}{len(each):>12}{-turns:>8}{size:>12,.2f}{-turns * size:>12,.2f}"
        lines.append(row)
    whole = sum(one.total_bytes for one in found) / 2**20
    return "\n".join([*lines, f"  {'together':<74}{whole:>12,.2f}"])
