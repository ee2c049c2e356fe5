"""Runs that start from other runs: larger images, other classes, a cool-down, and what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from configs import digits as recipe
from pom_jax.data import Field, Writer
from pom_jax.errors import InputError
from pom_jax.models.resample import compare, fit_parameters
from pom_jax.sampling import load
from pom_jax.training import checkpoint, loop, metrics
from pom_jax.training.config import changed_fields
from pom_jax.training.optim import make_schedule
from pom_jax.training.run import make_run
from pom_jax.training.start import coordinates, find_start, uses

SMALL = {"width": 8, "depth": 1, "expansion": 1, "ffn_expansion": 1, "registers": 2, "positions": "learned"}


def tiny(**sections: Any) -> ConfigDict:
    config = recipe.get_config()
    config.model.update(SMALL | {"num_classes": 3})
    config.data.update({"source": "synthetic", "batch_size": 8})
    config.optimizer.update({"warmup_steps": 0, "schedule": "constant"})
    config.train.update(
        {"steps": 4, "eval_every": 0, "sample_every": 0, "checkpoint_every": 2, "eval_size": 8}
    )
    config.sampling.update({"sampler": "euler", "steps": 2, "num": 3})
    for name, fields in sections.items():
        if isinstance(fields, dict):
            config[name].update(fields)
        else:
            config[name] = fields
    return config


def run(config: ConfigDict, workdir: Path) -> str:
    assert loop.train(config, workdir, lambda *_: None) == 0
    return (workdir / "log.txt").read_text()


def rows(workdir: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in metrics.read_rows(workdir)]


def same(a: Any, b: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs that differ in where they start compile the same programs, which are kept between them."""
    kept = {
        "jax_compilation_cache_dir": (str(tmp_path_factory.mktemp("programs")), None),
        "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
        "jax_disable_most_optimizations": (True, False),  # they take most of a test's time
    }
    for turn in (0, 1):
        for name, values in kept.items():
            jax.config.update(name, values[turn])
        compilation_cache.reset_cache()
        if turn == 0:
            yield


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "parent"
    run(tiny(), workdir)
    return workdir


def test_a_finer_grid_and_other_classes_change_their_tables_alone(parent: Path) -> None:
    config = tiny(init_from=str(parent), model={"image_size": 16, "num_classes": 5})
    start = find_start(make_run(config))
    state = start.state()
    old, _ = checkpoint.restore_params(parent)
    assert same(state.params, state.ema[0])
    assert int(state.step) == 0
    assert not any(map(np.any, jax.tree.leaves(state.opt_state)))
    for name, table in state.params.items():
        if name == "class_embedding":
            assert table["table"].shape == (6, 8)
            np.testing.assert_array_equal(table["table"][-1], old[name]["table"][-1])
            assert 0.01 < np.std(table["table"][:-1]) < 0.03, "drawn anew"
        elif "positions" in name:
            assert table.shape == (8, 8, 8)
            np.testing.assert_allclose(jnp.mean(table, (0, 1)), jnp.mean(old[name], (0, 1)), atol=1e-3)
        else:
            assert same(table, old[name]), name
    said = "\n".join(start.lines)
    assert "EMA 0.999 of step 4" in said
    assert "condition_positions: resampled from 4 x 4 to 8 x 8" in said
    assert "class_embedding/table: 5 classes anew for the 3 there, the null class kept" in said


def test_classes_that_are_others_are_told_though_they_are_as_many(parent: Path, tmp_path: Path) -> None:
    fields = {"mean": Field("float32", (1, 8, 8, 1)), "label": Field("int32", ())}
    records = {"mean": np.zeros((8, 1, 8, 8, 1), np.float32), "label": np.zeros(8, np.int32)}
    for name in ("abc", "axc"):
        with Writer(
            tmp_path / name, name=name, fields=fields, classes=list(name), scale=1.0, shift=0.0
        ) as to:
            for split in ("train", "test"):
                to.write(split, records)
    workdir = tmp_path / "parent"
    shutil.copytree(parent, workdir)
    kept = json.loads((workdir / "config.json").read_text())

    def said(there: str, here: str) -> str:
        kept["data"]["dir"] = str(tmp_path / there)
        (workdir / "config.json").write_text(json.dumps(kept))
        fine = tiny(init_from=str(workdir), data={"source": "shards", "dir": str(tmp_path / here)})
        return "\n".join(find_start(make_run(fine)).lines)

    assert "class_embedding" not in said("abc", "abc")
    line = "1 of 3 classes have other names, as label 1: 'b' there, 'x' here; --config.init_new_classes=True"
    assert line in said("abc", "axc")
    assert "kept row by row: the names of the classes there are not at hand" in said("nowhere", "abc")


def test_as_many_other_classes_start_anew_when_asked(parent: Path) -> None:
    start = find_start(make_run(tiny(init_from=str(parent), init_new_classes=True)))
    assert "  class_embedding/table: 3 classes anew, the null class kept" in start.lines
    begun, old = start.state(), checkpoint.restore_params(parent)[0]
    for params in (begun.params, *begun.ema):
        table, before = (p.pop("class_embedding")["table"] for p in (params, dict(old)))
        np.testing.assert_array_equal(table[-1], before[-1])
        assert not np.isclose(table[:-1], before[:-1], rtol=1e-3).any()
        assert 0.01 < np.std(table[:-1]) < 0.03, "drawn anew"
        assert same(params, {name: leaf for name, leaf in old.items() if name != "class_embedding"})


@pytest.mark.smoke
def test_resampling_keeps_what_it_should() -> None:
    table = jax.random.normal(jax.random.key(0), (4, 4, 8))
    old = {"positions": table, "class_embedding": {"table": table[0]}, "registers": table[1]}
    assert same(fit_parameters(old, jax.tree.map(jnp.zeros_like, old)), old)
    finer = old | {"positions": jnp.zeros((8, 6, 8))}
    constant = fit_parameters(old | {"positions": jnp.full((4, 4, 8), 3.5)}, finer)["positions"]
    np.testing.assert_allclose(constant, 3.5, rtol=1e-6)
    assert compare(old, finer) == (["positions: resampled from 4 x 4 to 8 x 6"], [])
    other = {"positions": table[:, :, :4], "class_embedding": {"table": table[0]}, "out": table}
    assert compare(old, other)[1] == [
        "out: nothing there, [4, 4, 8] here",
        "positions: [4, 4, 8] there, [4, 4, 4] here",
        "registers: [4, 8] there, nothing here",
    ]


def test_a_run_at_another_size_that_learns_nothing_draws_what_its_parent_draws(
    parent: Path, tmp_path: Path
) -> None:
    original, workdir = tmp_path / "parent", tmp_path / "run"
    shutil.copytree(parent, original)
    config = tiny(init_from=str(original), model={"image_size": 16}, train={"steps": 1})
    config.optimizer.learning_rate = 1e-30
    assert "resampled from 4 x 4 to 8 x 8" in run(config, workdir)
    shutil.rmtree(original)
    config.train.steps = 2
    assert "goes on after step 1" in run(config, workdir), "from its own checkpoint, without its parent"
    child, old = load(workdir), load(parent)
    assert child.config.init_from == str(original)
    old.config = child.config  # the network of the parent, asked for larger images
    np.testing.assert_allclose(child.sample_array([0, 1, 2]), old.sample_array([0, 1, 2]), atol=1e-5)


def test_a_network_without_unit_gates_starts_one_with_them(parent: Path) -> None:
    config = tiny(init_from=str(parent), model={"unit_gates": True})
    begun, old = find_start(make_run(config)).state(), checkpoint.restore_params(parent)[0]
    gates, before = (p["blocks"]["modulation"].pop("bias") for p in (begun.params, old))
    np.testing.assert_allclose(gates[:, [2, 5]], before[:, [2, 5]] - 1, atol=1e-6)
    np.testing.assert_array_equal(gates[:, [0, 1, 3, 4]], before[:, [0, 1, 3, 4]])
    assert same(begun.params, old)


@pytest.mark.smoke
def test_fields_by_which_parameters_mean_something_else_are_warned_of() -> None:
    old = tiny(model={"positions": "dit"}, diffusion={"path": "variance", "prediction": "noise"})
    new = tiny(model={"positions": "sincos", "phase_periods": (16.0,)})
    lines = uses(changed_fields(old, new), old, ())
    told = [line for line in lines if line.startswith("warning")]
    assert [line.split(": ")[1] for line in told] == [
        "diffusion.path",
        "diffusion.prediction",
        "model.phase_periods",
        "model.positions",
    ]
    assert told[3].endswith("learned with the former, which --config.model.positions=dit keeps")
    assert "'--config.model.phase_periods=()' keeps" in told[2]
    new = tiny(model={"positions": "dit"}, optimizer={"b1": 0.5})
    assert not any(
        "warning" in line for line in uses(changed_fields(new, tiny(model={"positions": "dit"})), new, ())
    )


def test_a_branch_goes_on_as_its_parent_did(parent: Path, tmp_path: Path) -> None:
    config = tiny(init_from=str(parent), init_step=2, init_state=True)
    said = run(config, tmp_path / "run")
    assert "goes on after step 2" in said
    assert rows(tmp_path / "run") == rows(parent)
    for ema in (None, 0):
        ours, theirs = (checkpoint.restore_params(w, 4, ema)[0] for w in (tmp_path / "run", parent))
        assert same(ours, theirs)


def test_a_cool_down_falls_to_zero(parent: Path) -> None:
    fields = {"schedule": "linear", "decay_from": 2}
    made = make_run(
        tiny(init_from=str(parent), init_step=2, init_state=True, optimizer=fields, train={"steps": 6})
    )
    start = find_start(made)
    assert any("optimizer.schedule: 'constant' there, 'linear' now" in line for line in start.lines)
    assert "  the learning rate goes on at 0.005" in start.lines
    rates = [make_schedule(made.config.optimizer, 6)(step) for step in range(start.step, 7)]
    np.testing.assert_allclose(rates, 5e-3 * np.array([1, 0.75, 0.5, 0.25, 0]), rtol=1e-6)

    fields |= {"learning_rate": 1e-3}
    made = make_run(
        tiny(init_from=str(parent), init_step=2, init_state=True, optimizer=fields, train={"steps": 6})
    )
    assert any("learning rate jumps from 0.005 there" in line for line in find_start(made).lines)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"width": 16, "registers": 3}}, r"\n  registers: \[2, 8\] there, \[3, 16\] here"),
        ({"model": {"registers": 0}}, r"condition_registers: \[2, 8\] there, nothing here"),
        (
            {"model": {"n_timesteps": 7}},
            "n_timesteps is 1000 there, 7 here.*give --config.model.n_timesteps=1000",
        ),
        ({"init_state": True, "model": {"unit_gates": True}}, "give --config.model.unit_gates=False"),
        ({"init_step": 3}, r"no checkpoint of step 3 .*\[2, 4\]"),
        ({"init_ema": 1}, "holds 1 averages"),
        ({"init_from": "nowhere"}, "nowhere is not a workdir"),
        ({"init_state": True}, "after step 4.* raise train.steps"),
        (
            {"init_state": True, "optimizer": {"name": "lamb"}, "train": {"steps": 9}},
            "another model or optimiser",
        ),
        ({"init_from": "", "init_state": True}, "init_state=True must be False"),
        ({"init_from": "", "init_new_classes": True}, "init_new_classes=True must be False"),
        ({"init_state": True, "init_new_classes": True}, "init_new_classes=True must be False"),
        ({"optimizer": {"decay_from": 4}}, "optimizer.decay_from=4"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    parent: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tiny(**{"init_from": str(parent)} | fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_warns_where_positions_count_patches() -> None:
    old = tiny(model={"positions": "dit"})
    larger = tiny(model={"positions": "dit", "image_size": 16})
    assert coordinates(old, old) == []
    assert "--config.model.native_size=8" in coordinates(larger, old)[0]
    larger.model.native_size = 8
    assert coordinates(larger, old) == []
    same_size = tiny(model={"positions": "dit", "native_size": 16})
    assert "--config.model.native_size=8" in coordinates(same_size, old)[0]
    larger.model.update({"positions": "sincos", "rotary": True})
    assert [line.split(" ")[1] for line in coordinates(larger, old)] == ["the", "rotary"]
