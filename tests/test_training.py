"""The training step and the loop: what a step does, what it leaves alone, what a run leaves behind."""

import dataclasses
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from benchmarks import matmuls
from configs import common
from configs import digits as recipe
from pom_jax import models
from pom_jax.data import digits
from pom_jax.durations import duration
from pom_jax.errors import InputError
from pom_jax.training import conditions, flops, ledger, loop, metrics, step
from pom_jax.training.config import warnings
from pom_jax.training.heldout import make_heldout_loss
from pom_jax.training.preview import to_pixels
from pom_jax.training.profile import Profile
from pom_jax.training.progress import Log, ProgressLine
from pom_jax.training.recorder import Recorder
from pom_jax.training.run import Run, make_run
from pom_jax.training.start import stretched


def tiny(folder: Path, **sections: dict[str, Any]) -> ConfigDict:
    config = recipe.get_config()
    config.model.update({"width": 16, "depth": 1, "ffn_expansion": 1})
    config.data.update({"dir": str(folder), "batch_size": 16})
    config.optimizer.update({"warmup_steps": 0, "schedule": "constant"})
    config.train.update(
        {"steps": 6, "eval_every": 3, "eval_size": 20, "sample_every": 4, "checkpoint_every": 4}
    )
    config.sampling.update({"sampler": "euler", "steps": 2, "num": 12})
    for section, fields in sections.items():
        config[section].update(fields)
    return config


def quick_jit(function: Callable[..., Any]) -> Any:
    """Compiled without the slow optimisations, which take most of a test's time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits"
    digits.prepare(path)
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return make_run(tiny(folder, model={"depth": 2}))


@pytest.fixture(scope="module")
def train_step(run: Run) -> Any:
    return quick_jit(run.step)


@pytest.fixture(scope="module")
def gradient(run: Run) -> Any:
    return quick_jit(step.make_gradient(run.config, run.model, run.train.manifest))


def batch(run: Run, start: int = 0, size: int | None = None) -> dict[str, jax.Array]:
    size = size or run.config.data.batch_size
    return jax.tree.map(jnp.asarray, run.train.gather(range(start, start + size)))


def same(a: Any, b: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.smoke
def test_a_step_depends_on_state_and_batch_only(run: Run, train_step: Any) -> None:
    state = run.fresh_state()
    (one, first), (two, second) = (train_step(state, batch(run)) for _ in range(2))
    assert same(one.params, two.params)
    assert first["loss"] == second["loss"]
    later, third = train_step(dataclasses.replace(state, step=state.step + 1), batch(run))
    assert first["loss"] != third["loss"], "another step draws other noise"
    assert int(later.step) == 2


def test_the_loss_of_a_batch_falls(run: Run, train_step: Any) -> None:
    state, losses = run.fresh_state(), []
    for _ in range(80):
        state, found = train_step(state, batch(run))
        losses.append(float(found["loss"]))
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])
    assert not same(state.ema[0], state.params)
    assert int(state.skipped) == 0


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(run: Run, train_step: Any) -> None:
    good, _ = train_step(run.fresh_state(), batch(run))
    broken = dataclasses.replace(good, params=jax.tree.map(lambda p: p * jnp.nan, good.params))
    bad, found = train_step(broken, batch(run))
    assert np.isnan(found["loss"])
    assert same((bad.opt_state, bad.ema), (broken.opt_state, broken.ema))
    assert (int(bad.step), int(bad.skipped), int(bad.skipped_in_a_row)) == (2, 1, 1)
    again, _ = train_step(bad, batch(run))
    assert (int(again.skipped), int(again.skipped_in_a_row)) == (2, 2)
    mended, found = train_step(dataclasses.replace(again, params=good.params), batch(run))
    assert (int(mended.skipped), int(mended.skipped_in_a_row)) == (2, 0)
    assert not same(mended.params, good.params)


def test_slices_of_a_batch_give_the_mean_of_their_gradients(run: Run, gradient: Any) -> None:
    config = ConfigDict(run.config.to_dict())
    config.optimizer.accumulate = 2
    key, whole = jax.random.key(1), batch(run)
    params = jax.tree.map(lambda p: p + 0.05, run.fresh_state().params)
    sliced = quick_jit(step.make_gradient(config, run.model, run.train.manifest))(params, key, whole)
    parts = [
        gradient(params, jax.random.fold_in(key, i), {name: a[i::2] for name, a in whole.items()})
        for i in (0, 1)
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), sliced, mean)


def test_labels_are_dropped_at_the_given_rate() -> None:
    labels = jnp.arange(20_000) % 10
    dropped = conditions.drop({"num_classes": 10}, labels, jax.random.key(0), 0.1)
    assert 0.09 < float(jnp.mean(dropped == 10)) < 0.11
    assert bool(jnp.all((dropped == labels) | (dropped == 10)))
    assert same(conditions.drop({"num_classes": 10}, labels, jax.random.key(0), 0.0), labels)


def test_bfloat16_is_for_products_only(folder: Path) -> None:
    config = tiny(folder)
    config.dtype = "bfloat16"
    made = make_run(config)
    state, found = jax.eval_shape(made.step, made.state, made.batch)
    floats = [leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")}
    assert found["loss"].dtype == jnp.float32
    assert "bf16" in jax.jit(made.step).lower(made.state, made.batch).as_text()


def test_heldout_loss_ignores_padding_and_repeats_itself(run: Run) -> None:
    loss = quick_jit(make_heldout_loss(run.config, run.model, run.heldout))
    params = jax.tree.map(lambda p: p + 0.05, run.fresh_state().params)
    batches = {name: a[None] for name, a in batch(run).items()}
    valid = jnp.arange(16)[None] < 12
    first = loss(params, batches | {"valid": valid})
    other = batches["mean"].at[0, 12:].set(7)
    assert same(first, loss(params, batches | {"valid": valid, "mean": other}))
    bins = [float(v) for name, v in first.items() if name != "heldout_loss"]
    np.testing.assert_allclose(np.average(bins), float(first["heldout_loss"]), rtol=0.5)
    assert float(first["heldout_loss"]) != float(
        loss(params, batches | {"valid": valid, "mean": other * 0})["heldout_loss"]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"form": "power", "expansion": 2},
        {"form": "power", "gate_heads": 8},
        {"rotary": True, "phase_periods": (4.0,)},
        {"mixer": "attention", "num_heads": 2},
        {"mixer": "hybrid", "num_heads": 2, "head_width": 32, "attention_every": 2},
        {"attention_every": 2, "num_heads": 2, "window": 2, "registers": 3},
    ],
)
def test_flops_are_those_that_the_compiler_counts(changes: dict) -> None:
    """Of products; what else the compiler counts shrinks beside them as networks get wider."""
    fields = models.preset("DiPoM-S/2") | {"image_size": 16, "channels": 4, "num_classes": 3, "scan": False}
    fields |= {"width": 512, "depth": 2} | changes
    model = models.build(fields)
    shapes = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
    inputs = models.dummy_inputs(model)
    forward = quick_jit(lambda p, *a: model.apply({"params": p}, *a))
    costs: Any = forward.lower(shapes, *inputs).compile().cost_analysis()
    counted = costs["flops"]
    assert 0.98 < flops.forward_flops(fields) / counted < 1.0


@pytest.mark.parametrize("changes", [{}, {"form": "power"}, {"mixer": "attention"}, {"mixer": "hybrid"}])
def test_a_step_has_three_times_the_flops_of_its_forward_pass(changes: dict) -> None:
    config = common.imagenet("DiPoM-S/2")
    config.data.update({"source": "synthetic", "batch_size": 2})
    config.model.update(changes)
    made = make_run(config)
    counts = matmuls.products(jax.make_jaxpr(made.step)(made.state, made.batch).jaxpr)
    counted = sum(product.flops * times for product, times in counts.items())
    assert 0.99 < flops.step_flops(config.model, 2) / counted < 1.01


def test_a_run_leaves_rows_pictures_and_checkpoints(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}
    config = tiny(folder)
    close, caught = Recorder.close, []

    def interrupted_close(recorder: Recorder) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # while the last checkpoint is written
        close(recorder)

    monkeypatch.setattr(Recorder, "close", interrupted_close)
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append("the end"))

    def write(path: Path, images: np.ndarray, labels: np.ndarray, names: object) -> None:
        drawn[path.name] = (images.shape, images.dtype, list(labels))

    assert loop.train(config, tmp_path, write, profile="2:3") == 0
    signal.signal(signal.SIGTERM, before)
    assert not caught, "the run would have ended before it was saved"
    rows = metrics.read_rows(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "heldout_loss" in row] == [3, 6]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
    assert drawn.keys() == {"step_0000004.png", "step_0000006.png"}
    assert drawn["step_0000006.png"] == ((12, 8, 8, 1), np.uint8, [*range(10), 0, 1])
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
    assert "step 6/6" in (tmp_path / "log.txt").read_text()
    log = (tmp_path / "log.txt").read_text()
    losses = {row["step"]: row["heldout_loss"] for row in rows if "heldout_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    for line in (
        f"step 3 | held-out loss {losses[3]:.4f} (best so far)",
        f"step 3 | profile of steps 2 to 3: {tmp_path}/profile",
        "memory of a device, MiB",
        "in one start: steps ",
        "step 4 | checkpoint saved",
        "step 6 | checkpoint saved",
        "step 6 | picture: ",
        "trained steps 1 to 6 in 0:00:",
        f"; best held-out loss {losses[best]:.4f} at step {best}",
    ):
        assert log.count(line) == 1, line
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    times = [row["time_step"] for row in rows]
    assert [row["step"] for row in rows if "time_evaluation" in row] == [3, 4, 6]
    assert [row["step"] for row in rows if "time_checkpoint" in row] == [5], "of the one before it"
    account = ledger.read(tmp_path)[0]
    assert sum(account.seconds[name] for name in ledger.PHASES[:-1]) >= 0.9 * sum(times)
    assert f"eval.py --workdir={tmp_path} --reference=" in log, "a data set without scores of its own"
    assert "warning" not in log
    assert loop.train(config, tmp_path, write, ["digits"]) == 0, "a finished run has nothing left to do"
    assert metrics.read_rows(tmp_path) == rows
    assert f"eval.py --workdir={tmp_path}\n" in (tmp_path / "log.txt").read_text()


def test_a_warm_up_that_fills_the_run_is_warned_of(folder: Path) -> None:
    for warmup, said in ((0, 0), (3, 0), (4, 1), (60, 1)):
        assert len(warnings(tiny(folder, optimizer={"warmup_steps": warmup}))) == said
    assert "10% of optimizer.learning_rate" in warnings(tiny(folder, optimizer={"warmup_steps": 60}))[0]


@pytest.mark.parametrize(
    ("images", "heldout", "words"), [(16, 16, []), (5, 16, ["3.2 times"]), (16, 1, ["of 1"])]
)
def test_data_that_are_few_are_told(folder: Path, images: int, heldout: int, words: list[str]) -> None:
    said = warnings(tiny(folder), images, heldout)
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))


def test_another_length_is_told_where_it_moves_the_learning_rate(folder: Path) -> None:
    short, long = (tiny(folder, train={"steps": steps}) for steps in (100, 200))
    assert stretched(None, long, 50) == stretched(short, short, 50) == []
    assert stretched(short, long, 50) == ["train.steps is 200 now, and was 100"], "a constant rate stays"
    for config in (short, long):
        config.optimizer.update({"schedule": "linear", "learning_rate": 0.4})
    assert "jumps from 0.2 to 0.3" in stretched(short, long, 50)[0]


def test_the_bar_moves_before_a_line_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    log, shown = Log(tmp_path), io.StringIO()
    log.console = Console(file=shown, force_terminal=True, width=120)
    line = ProgressLine(log, start=0, steps=100, batch_size=2, step_flops=1, peak=None, every=1e6)
    for number in range(1, 8):
        time.sleep(0.05)
        line.update(number, 0.25)
    line.close()
    assert "loss 0.2500" in shown.getvalue()
    assert "/100" in shown.getvalue()
    assert (tmp_path / "log.txt").read_text() == "", "no plain line is due yet"


def test_images_a_second_are_those_of_the_steps(tmp_path: Path) -> None:
    log = Log(tmp_path)
    line = ProgressLine(log, start=0, steps=2, batch_size=100, step_flops=1, peak=None, every=1e6)
    time.sleep(0.1)
    line.update(1, 0.25)
    time.sleep(0.4)
    line.update(2, 0.25, aside=0.3)
    rate = re.search(r"([\d,]+) images/s", (tmp_path / "log.txt").read_text())
    assert rate is not None
    assert 800 < float(rate[1].replace(",", "")) <= 1000, "200 images in the 0.2 s that are left"


@pytest.mark.parametrize("window", ["3", "5:4", "0:2", "2:11", "2:3:4", "a:b"])
def test_windows_of_a_profile_are_checked(window: str) -> None:
    with pytest.raises(InputError, match=f"--profile={window} must be the first and the last step"):
        Profile(window, 10)


@pytest.mark.smoke
def test_rows_after_the_restored_step_are_cut_off(tmp_path: Path) -> None:
    for start, last in ((0, 9), (5, 7)):
        rows = metrics.JsonLines(tmp_path, start)
        for number in range(start + 1, last + 1):
            rows.write(number, {"loss": float(start), "skipped": float("nan")})
        rows.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    rows = metrics.JsonLines(tmp_path, 20)
    rows.close()
    found = metrics.read_rows(tmp_path)
    assert metrics.by_step(tmp_path, "skipped") == {}
    assert metrics.by_step(tmp_path, "loss") == dict.fromkeys(range(1, 6), 0.0) | {6: 5.0, 7: 5.0}
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["loss"] for row in found] == [0.0] * 5 + [5.0] * 2
    assert found[0]["skipped"] is None


def test_a_damaged_row_costs_no_other(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 7)]
    lines[2] = lines[2][:9]
    content = "\n".join(lines) + "\n"
    (tmp_path / "metrics.jsonl").write_text(content)
    metrics.JsonLines(tmp_path, 5).close()
    assert [row["step"] for row in metrics.read_rows(tmp_path)] == [1, 2, 4, 5]
    assert (tmp_path / "metrics.damaged").read_text() == content


def test_a_full_disk_is_said_of_the_rows_too(tmp_path: Path) -> None:
    rows = metrics.JsonLines(tmp_path, 0)
    rows.write(1, {"loss": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limits[1]))
    try:
        with pytest.raises(InputError, match=r"metrics.jsonl cannot be written .*make room") as told:
            rows.write(2, {"loss": 1.0})
        assert told.value.exit_code == 2, "another start would meet the same"
        rows.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_run_outlives_whoever_reads_its_lines(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\nfrom pom_jax.training.progress import Log\n"
        "log = Log(pathlib.Path(sys.argv[1]))\nfor line in sys.stdin: log.line(line.strip())"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    process.stdin.write("one\ntwo\nthree\n")
    process.stdin.close()
    assert process.wait() == 0
    assert [line.split()[-1] for line in (tmp_path / "log.txt").open()] == ["one", "two", "three"]


def test_what_is_shown_of_samples() -> None:
    assert to_pixels(np.array([-2.0, -1.0, 0.0, 1.0]).reshape(1, 2, 2, 1)).ravel().tolist() == [
        0,
        0,
        128,
        255,
    ]
    assert to_pixels(np.zeros((1, 2, 2, 4))).shape == (1, 2, 2, 3)
    assert duration(3725.2) == "1:02:05"


def test_the_reported_norm_is_the_one_before_clipping(run: Run, train_step: Any, gradient: Any) -> None:
    state = run.fresh_state()
    state = dataclasses.replace(state, params=jax.tree.map(lambda p: p + 0.5, state.params))
    _, grads = gradient(state.params, jax.random.fold_in(state.key, 0), batch(run))
    _, found = train_step(state, batch(run))
    assert found["grad_norm"] > run.config.optimizer.clip_norm
    np.testing.assert_allclose(found["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
