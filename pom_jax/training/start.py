"""Where a run starts: at random parameters, at those of another run, or in the middle of another run."""

import dataclasses
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pom_jax import models, remote
from pom_jax.data import read_manifest
from pom_jax.errors import InputError
from pom_jax.files import write_whole
from pom_jax.models.resample import CLASSES, compare
from pom_jax.training import checkpoint, metrics
from pom_jax.training.config import ADDED, changed_fields
from pom_jax.training.optim import make_schedule
from pom_jax.training.run import Run
from pom_jax.training.sharding import parameter_shardings
from pom_jax.training.state import TrainState

# Fields by which the same parameters are another network, and that no training is to change.
READING = ("model.activation", "model.n_timesteps", "model.time_embedding")
GATES = "model.unit_gates"
# Of a model: told by shapes, or by `compare` and `coordinates`.
SIZES = ("image_size", "native_size", "num_classes", "num_heads", "head_width")
SIZES += ("frames", "frame_height", "frame_width", "text_length")
OUTPUT = ("diffusion.path", "diffusion.prediction", "diffusion.variance_schedule")  # what it means


@dataclasses.dataclass(frozen=True)
class Start:
    """The state that a new run starts from, which is checked but not read yet.

    Attributes:
        step: of that state.
        lines: what it is and what was changed, for people.
        state: makes it, in the shardings of the run.
        parent: the run whose steps come before; None where this one begins at step 0.
    """

    step: int
    lines: tuple[str, ...]
    state: Callable[[], TrainState]
    parent: str | None = None

    def keep_history(self, workdir: Path) -> None:
        """Copies the numbers of the steps before into the workdir, whose metrics.jsonl is then whole."""
        if self.parent is None:
            return
        home = checkpoint.checkpoints_folder(self.parent).parent
        if remote.is_remote(home):  # the parent may have gone on, on another machine
            fetch_rows(home, self.step, workdir)
        elif (there := Path(self.parent) / metrics.FILE).is_file():
            shutil.copyfile(there, workdir / metrics.FILE)


def find_start(run: Run) -> Start:
    """Where `config.init_from` says that a run starts; reads no arrays and computes nothing.

    Raises:
        InputError: no such run, checkpoint or average; parameters, or a state, that do not fit (all of them
            are listed, with both shapes), or would be another network here; no steps left to train.
    """
    if not run.config.init_from:
        return Start(0, (), run.fresh_state)
    parent = checkpoint.load_config(run.config.init_from)
    if models.family(parent.model) is not models.family(run.config.model):
        kinds = ("images", "clips") if run.samples == "clips" else ("clips", "images")
        raise InputError(
            f"init_from={run.config.init_from} is a model of {kinds[0]}, and this one is of {kinds[1]}: give "
            "a run of the same kind"
        )
    return _branch(run, parent) if run.config.init_state else _fine_tune(run, parent)


def _fine_tune(run: Run, parent: ConfigDict) -> Start:
    config = run.config
    ema = None if config.init_ema < 0 else config.init_ema
    shapes, step = checkpoint.parameter_shapes(config.init_from, _step(config), ema)
    changes, misfits = compare(shapes, run.state.params)
    if misfits:
        raise InputError(
            f"init_from={config.init_from}: its parameters do not fit this model; change the fields of "
            "config.model, or init_from:\n  " + "\n  ".join(misfits)
        )
    changed = changed_fields(parent, config)
    _check_reading(config, changed, READING)
    unit, unit_now = changed.get(GATES, (False, False))

    def state() -> TrainState:
        shardings = parameter_shardings(shapes, run.mesh)
        params, _ = checkpoint.restore_params(config.init_from, step, ema, shardings)
        gates = float(unit) - float(unit_now)
        return run.fresh_state(params, gates=gates, new_classes=config.init_new_classes)

    which = "the parameters" if ema is None else f"EMA {parent.ema.decays[ema]:g}"
    lines = [f"starts from {which} of step {step:,} of {config.init_from}, with a new optimiser"]
    changes += [*_classes(run, parent), *coordinates(config, parent)]
    used = {name: values for name, values in changed.items() if name.startswith(("model.", "diffusion."))}
    changes += uses(used, parent, ("model.image_size", "model.num_classes"))
    lines += [f"  {line}" for line in changes]
    return Start(0, tuple(lines), state)


def _branch(run: Run, parent: ConfigDict) -> Start:
    config = run.config
    step = checkpoint.check_same_state(config.init_from, _step(config), run.state)
    changed = changed_fields(parent, config)
    _check_reading(config, changed, (*READING, GATES))
    if step >= config.train.steps:
        raise InputError(
            f"init_from={config.init_from} goes on after step {step}, and "
            f"train.steps={config.train.steps} is the last: raise train.steps, or choose an earlier init_step"
        )
    lines = [f"goes on after step {step:,} of {config.init_from}, with its optimiser and averages"]
    lines.append(f"  {_learning_rates(config, parent, step)}")
    lines += [f"  {line}" for line in uses(changed, parent, ("name", "init_"))]
    lines += [f"  {line}" for line in _classes(run, parent)]
    return Start(
        step,
        tuple(lines),
        lambda: checkpoint.restore_step(config.init_from, step, run.state),
        config.init_from,
    )


def fetch_rows(home: str | Path, step: int, workdir: Path) -> None:
    """Copies the numbers kept with a checkpoint in a bucket into a workdir that does not have all of them."""
    if not metrics.rows_after(workdir, step - 1) and (rows := checkpoint.kept_rows(home, step)):
        write_whole(workdir / metrics.FILE, rows)


def stretched(kept: ConfigDict | None, config: ConfigDict, step: int) -> list[str]:
    """What another train.steps does to a run that goes on after `step`, whose configuration was `kept`."""
    if kept is None or kept.train.steps == config.train.steps:
        return []
    before = {"decay_from": ADDED["optimizer.decay_from"], **kept.optimizer}
    old, new = (
        float(make_schedule(fields, length)(step))
        for fields, length in ((before, kept.train.steps), (config.optimizer, config.train.steps))
    )
    line = f"train.steps is {config.train.steps:,} now, and was {kept.train.steps:,}"
    if abs(new - old) <= 0.01 * max(old, new):
        return [line]
    return [
        f"warning: {line}: the schedule {config.optimizer.schedule!r} ends there, and the learning rate "
        f"jumps from {old:.3g} to {new:.3g}"
    ]


def _learning_rates(config: ConfigDict, parent: ConfigDict, step: int) -> str:
    """What becomes of the learning rate where a run branches off."""
    before = {"decay_from": ADDED["optimizer.decay_from"], **parent.optimizer}
    old = float(make_schedule(before, parent.train.steps)(step))
    new = float(make_schedule(config.optimizer, config.train.steps)(step))
    if abs(new - old) <= 0.01 * old:
        return f"the learning rate goes on at {new:.3g}"
    return (
        f"warning: the learning rate jumps from {old:.3g} there (schedule {parent.optimizer.schedule}) to "
        f"{new:.3g}; --config.optimizer.decay_from={step} --config.optimizer.learning_rate={old:.6g} falls "
        "from there"
    )


def _step(config: ConfigDict) -> int | None:
    return None if config.init_step < 0 else config.init_step


def _classes(run: Run, parent: ConfigDict) -> list[str]:
    """Whether the classes, or words, whose embeddings are kept are others here."""
    config, here = run.config, run.train.manifest.classes
    if run.samples == "clips":
        return _words(run.train.manifest.words, tuple(parent.data.get("words", ())))
    if config.model.num_classes != parent.model.num_classes:
        return []
    if config.init_new_classes:
        return [f"{CLASSES}: {config.model.num_classes:,} classes anew, the null class kept"]
    if config.model.num_classes == 1 or config.data.source == "synthetic":
        return []
    way_out = "" if config.init_state else "; --config.init_new_classes=True starts the classes anew"
    try:
        there = read_manifest(parent.data.dir).classes
    except InputError:
        there = ()
    if len(there) != len(here):
        return [f"{CLASSES} is kept row by row: the names of the classes there are not at hand{way_out}"]
    others = [label for label in range(len(here)) if here[label] != there[label]]
    if not others:
        return []
    label = others[0]
    return [
        f"warning: {CLASSES} is kept, but {len(others):,} of {len(here):,} classes have other "
        f"names, as label {label}: {there[label]!r} there, {here[label]!r} here{way_out}"
    ]


def _words(here: Sequence[str], there: Sequence[str]) -> list[str]:
    for number, (word, before) in enumerate(zip(here, there, strict=False)):
        if word != before:
            return [f"warning: the words are others than there: number {number} was {before!r}, is {word!r}"]
    return []


def _check_reading(config: ConfigDict, changed: Mapping[str, Any], fields: Sequence[str]) -> None:
    """Raises an InputError if one of these fields is another, by which the parameters are another network."""
    if wrong := [name for name in fields if name in changed]:
        there = "; ".join(
            f"{name} is {changed[name][0]!r} there, {changed[name][1]!r} here" for name in wrong
        )
        flags = " ".join(_flag(name, changed[name][0]) for name in wrong)
        raise InputError(
            f"init_from={config.init_from}: its parameters would be another network here ({there}): "
            f"give {flags}"
        )


def uses(changed: Mapping[str, Any], parent: ConfigDict, said: tuple[str, ...]) -> list[str]:
    """The fields that are others, one line each but for those that are said elsewhere.

    Warnings are those by which the same parameters compute something else, or what they compute is taken for
    something else.
    """
    lines = []
    for name, (old, new) in changed.items():
        line = f"{name}: {old!r} there, {new!r} now"
        section, _, field = name.partition(".")
        another = section == "model" and field not in SIZES
        another |= name in OUTPUT and not (field == "variance_schedule" and parent.diffusion.path == "flow")
        if name == GATES:
            line += f", whose biases are {'raised' if old else 'lowered'} by 1 for the same function"
        elif another:
            line = f"warning: {line}: learned with the former, which {_flag(name, old)} keeps"
        if not name.startswith(said):
            lines.append(line)
    return lines


def _flag(name: str, value: Any) -> str:
    return shlex.quote(f"--config.{name}={value}")


def coordinates(config: ConfigDict, parent: ConfigDict) -> list[str]:
    """Warnings where a grid has positions that the parent has not seen, nor such on both sides of them."""
    model, old = config.model, parent.model
    if models.family(model) is models.Polymorpher:
        return []
    size = old.get("native_size", 0) or old.image_size
    lines = []
    if model.positions == "dit" and (model.native_size or model.image_size) != size:
        lines.append(
            "warning: positions 'dit' count patches, and the picture has other coordinates than there: "
            f"--config.model.native_size={size} keeps them"
        )
    if model.image_size == old.image_size:
        return lines
    if model.positions == "sincos":
        lines.append(
            "warning: the waves of positions 'sincos' are shorter than a patch, so another grid sees other "
            "values; 'sincos_phase' (of both runs) and 'learned' are smooth"
        )
    if model.rotary or model.phase_periods:
        lines.append("warning: rotary positions and phases count patches: the new grid has ones never seen")
    return lines
