"""Whether a run fits into the memory of a device; if not, by how much, and what each knob would save."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from pom_jax.errors import InputError, first_line
from pom_jax.ops.mesh import backend
from pom_jax.training import offload
from pom_jax.training.config import CHANGEABLE
from pom_jax.training.estimate import estimate
from pom_jax.training.memory import COPIES, Memory
from pom_jax.training.objective import frame_times
from pom_jax.training.run import Run, placed

REMAT = ("none", "dots", "states", "full")  # each keeps less than the one before
NEAR = 0.8  # of a device: what needs less, as estimated, is refused for another reason than its own size

# What a run computes beside its steps: the field that makes it smaller, and the one that at 0 leaves it out.
BESIDE = {
    "the pictures drawn during training": ("sampling.num", "train.sample_every"),
    "the FID": ("fid.batch_size", "fid.every"),
    "the held-out loss": ("train.eval_size", "train.eval_every"),
}
PICTURES, FID, HELD_OUT = BESIDE


def check_fits(needed: Memory, run: Run, limit: int | None, host: int | None = None) -> None:
    """Raises InputError if a step needs more than a device has; says by how much and what to turn.

    Args:
        needed: of a device.
        run: that needs it.
        limit: `memory.device_bytes()`; nothing is checked where that is not known.
        host: `memory.host_bytes()`, likewise.

    Raises:
        InputError: it does not fit.
    """
    if host is not None and needed.host > host:
        raise InputError(
            f"what waits on the host needs {_gib(needed.host)} there for each device, whose share of its "
            f"memory is {_gib(host)}: set optimizer.offload or ema.offload to False, or (new runs only) "
            "optimizer.moments to bfloat16, or cut the state over more devices with mesh.fsdp"
        )
    if limit is None or _whole(needed, run) <= limit:
        return
    what = "a training step" if needed.work else "the state of this run alone"
    raise InputError(f"{what} {_lack(needed, run, limit)}")


@contextlib.contextmanager
def exhaustion_in_words(run: Run, limit: int | None, beside: str = "") -> Iterator[None]:
    """Within, memory that a compiler or a device finds too small ends in an InputError; other errors pass.

    Compilers of accelerators refuse a program that is too large, so that nothing is left for `check_fits`.

    Args:
        run: that needs it, whose step is estimated then.
        limit: `memory.device_bytes()`.
        beside: what is computed within, of BESIDE, which other fields help than a training step.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        small, said = "the memory of a device is too small", first_line(error)
        if beside:
            size, every = BESIDE[beside]
            section, name = size.split(".")
            raise InputError(
                f"{small} for {beside} ({said}): lower {size}, {run.config[section][name]:,} now, or do "
                f"without, by --config.{every}=0"
            ) from error
        with jax.set_mesh(run.mesh):
            needed = estimate(run)
        if limit is not None and (whole := _whole(needed, run)) < NEAR * limit:
            advice = f"would fit, with {_gib(whole)} of {_gib(limit)}: look for what else takes that memory"
        else:
            advice = _lack(needed, run, limit)
        raise InputError(f"{small} ({said}). A training step, as estimated, {advice}") from error


def _whole(needed: Memory, run: Run) -> int:
    """Bytes of a device at the worst time."""
    return needed.together + _host_on_device(needed) + _copied(needed, run)


def _lack(needed: Memory, run: Run, limit: int | None) -> str:
    """What is needed, by how much too much that is, and what would save some."""
    whole = _whole(needed, run)
    said = f"needs {_gib(whole)} of each device"
    if limit is not None:
        said += f", which has {_gib(limit)}"
        said += f": {_gib(whole - limit)} too much" if whole > limit else ""
    if copied := _copied(needed, run):
        said += f" ({_gib(copied)} of that need is for copies of the state while a checkpoint is written)"
    known = sorted(_savings(needed, run), reverse=True)
    knobs = [f"{knob} ({_gib(saved)}{_whose(knob)})" for saved, knob in known if saved > 0]
    if jax.default_backend() == "gpu":
        knobs.append("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95, for JAX takes 75 % of a GPU by default")
    return f"{said}. What saves memory, about how much, the most first: {'; '.join([*knobs, 'more devices'])}"


def _whose(knob: str) -> str:
    """A run that goes on refuses the others."""
    return "" if knob.removeprefix("--config.").startswith(CHANGEABLE) else ", new runs only"


def _savings(needed: Memory, run: Run) -> list[tuple[float, str]]:
    """Bytes of a device that a change would save, and the change."""
    config, sizes = run.config, dict(run.mesh.shape)
    free, fsdp = sizes.get("data", 1), sizes.get("fsdp", 1)
    state = needed.parameters + needed.optimiser + needed.averages + _host_on_device(needed)
    times = 1 + COPIES if _copied(needed, run) else 1
    found = [(times * state * (1 - 1 / free), f"--config.mesh.fsdp={fsdp * free}")]
    if config.optimizer.moments == "float32" and not config.optimizer.offload:
        found.append((times * needed.optimiser / 2, "--config.optimizer.moments=bfloat16"))
    if (decays := len(config.ema.decays)) > 1:
        found.append((times * needed.averages / decays, "one of ema.decays less"))
    if needed.work:
        return found + _savings_at_work(needed, run)
    parts = {"optimizer.offload": needed.optimiser, "ema.offload": needed.averages}
    return found + [(parts[field], f"--config.{field}=True") for field in _kept_on_device(run)]


def _host_on_device(needed: Memory) -> int:
    """What waits on the host and takes memory of the device all the same: on a CPU, which has one memory."""
    return needed.host if backend() == "cpu" else 0


def _copied(needed: Memory, run: Run) -> int:
    """What a save adds until it is written, if steps follow it."""
    train = run.config.train
    return needed.copied if train.checkpoint_every < train.steps else 0


def _kept_on_device(run: Run) -> list[str]:
    """Fields that would let a part of the state wait on the host, where there is another memory."""
    if backend() == "cpu" or not offload.is_possible(run.mesh):
        return []
    there = offload.parts_on_host(run.config, run.mesh)
    return [field for part, field in offload.FIELDS.items() if part not in there]


def _savings_at_work(needed: Memory, run: Run) -> list[tuple[float, str]]:
    """Of a whole step: by arithmetic, for a compiler would take minutes for each."""
    batch, slices = run.config.data.batch_size, run.config.optimizer.accumulate
    policies = REMAT[REMAT.index(run.config.model.remat) + 1 :]
    changes: list[tuple[str, Any]] = [("model.remat", policy) for policy in policies]
    cuts = math.prod(run.mesh.shape.get(axis, 1) for axis in ("data", "fsdp"))
    frames, _ = frame_times(run.config)
    every = 1 if frames is None else frames.film_every
    if batch % (2 * slices * cuts * every) == 0:
        changes += [("optimizer.accumulate", 2 * slices), ("data.batch_size", batch // 2)]
    changes += [(field, True) for field in _kept_on_device(run)]  # comes to the device for the update
    with jax.set_mesh(run.mesh):
        before = estimate(run).together
        found = [(before - estimate(_changed(run, *change)).together, *change) for change in changes]
    return [
        (saved + (needed.batch / 2 if field == "data.batch_size" else 0), f"--config.{field}={value}")
        for saved, field, value in found
    ]


def _changed(run: Run, field: str, value: Any) -> Run:
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
    return dataclasses.replace(run, config=config, state=placed(run.state, config, run.mesh))


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
