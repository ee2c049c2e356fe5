"""Where arrays live: one row of the table for each parameter, and one device computes what eight do."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from configs import digits as recipe
from pom_jax import models
from pom_jax.data import digits
from pom_jax.errors import InputError
from pom_jax.training import checkpoint, digest, metrics, sharding
from pom_jax.training.run import make_run
from pom_jax.training.state import initial_state
from pom_jax.training.step import make_train_step

KINDS = [
    ("DiPoM-S/2", {}),
    ("DiPoM-R-B/4", {}),
    ("DiT-S/8", {}),
    ("DiPoM-S/2", {"form": "power", "gate_heads": 4}),
    ("DiPoM-S/2", {"form": "power", "groups": 2}),
    ("DiPoM-S/2", {"mixer": "hybrid", "window": 2, "form": "power", "gate_heads": 4}),
    ("DiPoM-S/2", {"attention_every": 3, "window": 2}),
    ("DiPoM-S/2", {"rotary": True, "phase_periods": (16.0, 4.0)}),
]


def parameter_shapes(preset: str, changes: dict[str, Any]) -> Any:
    fields = models.preset(preset) | {"image_size": 32, "channels": 4, "num_classes": 10} | changes
    model = models.build(fields)
    return jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))


@pytest.mark.smoke
@pytest.mark.parametrize(("preset", "changes"), KINDS)
def test_each_parameter_has_exactly_one_row(preset: str, changes: dict[str, Any]) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(preset, changes)):
        name = digest.path_name(path)
        rows = [axes for pattern, axes in sharding.PARAMETER_AXES if re.fullmatch(pattern, name)]
        assert len(rows) == 1, name
        axes = sharding.logical_axes(name, leaf.ndim)
        assert len(axes) == leaf.ndim, name
        assert (axes[0] == "layers") == name.startswith("blocks/")
        assert set(axes) - {None} <= sharding.MESH_AXES.keys()


@pytest.mark.parametrize(("preset", "changes"), KINDS[:4])
def test_nearly_all_memory_is_cut_by_fsdp(preset: str, changes: dict[str, Any]) -> None:
    shapes = parameter_shapes(preset, changes)
    named = [(digest.path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)]
    cut = sum(leaf.size for name, leaf in named if "embed" in sharding.logical_axes(name, leaf.ndim))
    assert cut > 0.99 * sum(leaf.size for _, leaf in named)


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(InputError, match="blocks/mixer/rotation"):
        sharding.logical_axes("blocks/mixer/rotation", 2)


@pytest.mark.smoke
@pytest.mark.parametrize("sizes", [{"data": 3, "fsdp": 7}, {"data": -1, "fsdp": -1}, {"data": 0, "fsdp": 1}])
def test_meshes_that_do_not_fit_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"mesh.data={sizes['data']}, mesh.fsdp={sizes['fsdp']}"):
        sharding.make_mesh(sizes)


def test_batches_that_do_not_divide_are_refused() -> None:
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1})
    sharding.check_batch(12 * mesh.size, 3, mesh)
    with pytest.raises(InputError, match=r"data.batch_size=13 must be a positive multiple of"):
        sharding.check_batch(13, 3, mesh)


def twenty_steps(folder: str, optimizer: optax.GradientTransformation | None, devices: int) -> Any:
    """Losses of 20 steps and the state after them, on one device or on data 2 x fsdp 4."""
    config = recipe.get_config()
    config.model.update({"width": 16, "depth": 2, "ffn_expansion": 1})
    config.data.update({"dir": folder, "batch_size": 16})
    run = make_run(config)
    optimizer = optimizer or run.optimizer
    shape = (1, 1) if devices == 1 else (2, 4)
    auto = (AxisType.Auto,) * 2
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=auto, devices=jax.devices()[:devices])

    def make(key: jax.Array) -> Any:
        return initial_state(key, lambda k: models.init(run.model, k), optimizer, 1)

    with jax.set_mesh(mesh):
        placed = sharding.state_shardings(jax.eval_shape(make, jax.random.key(0)), mesh)
        state = jax.jit(make, out_shardings=placed)(jax.random.key(0))
        step = make_train_step(config, run.model, run.train.manifest, optimizer)
        step = jax.jit(step, donate_argnums=0, out_shardings=(placed, None))
        losses = []
        for index in range(20):
            batch = run.train.gather(range(16 * index, 16 * index + 16))
            state, metrics = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
            losses.append(float(metrics["loss"]))
    return losses, state


def compare(folder: str, workdir: str) -> dict[str, Any]:
    """Largest differences between one device and eight; runs in a process with eight virtual devices."""
    found: dict[str, Any] = {}
    for name, optimizer in (("adamw", None), ("sgd", optax.sgd(0.1))):
        (one, alone), (eight, spread) = (twenty_steps(folder, optimizer, devices) for devices in (1, 8))
        leaves = zip(jax.tree.leaves(alone.params), jax.tree.leaves(spread.params), strict=True)
        found[name] = {
            "loss": float(np.max(np.abs(np.array(one) / np.array(eight) - 1))),
            "parameters": max(
                float(np.max(np.abs(a - np.asarray(b))) / jnp.max(jnp.abs(a))) for a, b in leaves
            ),
            "fall": one[-1] / one[0],
        }
    kernel = spread.ema[0]["blocks"]["feed_forward"]["hidden"]["kernel"]
    found["share"] = kernel.addressable_shards[0].data.size / kernel.size

    saver = checkpoint.Checkpoints(workdir, keep_last=1, keep_best=0)
    saver.save(20, spread)
    saver.close()
    at = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), alone)
    restored, _ = checkpoint.restore_state(workdir, at) or (None, 0)
    found["same digests"] = digest.digests(restored) == digest.digests(spread)
    return found


def test_one_device_computes_what_eight_do(tmp_path: Path) -> None:
    digits.prepare(tmp_path / "digits")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    flags += " --xla_backend_optimization_level=0"  # compiles in half the time
    code = (
        "import json, sys; from tests.test_sharding import compare; print(json.dumps(compare(*sys.argv[1:])))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "digits"), str(tmp_path / "run")],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    print(found)
    assert found["adamw"]["loss"] < 2e-5
    assert found["sgd"]["loss"] < 2e-5
    assert found["sgd"]["parameters"] < 2e-5
    assert found["sgd"]["fall"] < 0.98, "the parameters have moved"
    assert found["share"] == 1 / 4
    assert found["same digests"]


PROCESS = """
import sys
import jax
address, number, folder, workdir = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(number))
from configs import digits as recipe
from pom_jax.sampling import write
from pom_jax.training import loop
config = recipe.get_config("quick")
config.model.update({"width": 8, "depth": 1, "ffn_expansion": 1})
config.data.update({"dir": folder, "batch_size": 8})
config.mesh.update({"data": 1, "fsdp": 2})
config.train.update({"steps": 4, "eval_every": 2, "eval_size": 8, "sample_every": 4, "checkpoint_every": 2})
config.sampling.update({"steps": 1, "num": 2, "sampler": "euler"})
sys.exit(loop.train(config, workdir, write))
"""


def test_two_processes_write_one_run(tmp_path: Path) -> None:
    digits.prepare(tmp_path / "digits")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    workdir = tmp_path / "run"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(number), str(tmp_path / "digits"), str(workdir)],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert "trained steps 1 to 4" in said[0][0]
    assert "step" not in said[1][0], "one of them speaks"
    assert [row["step"] for row in metrics.read_rows(workdir)] == [1, 2, 3, 4]
    assert (workdir / "log.txt").read_text().count("step 4/4") == 1
    assert checkpoint.saved_steps(workdir) == [2, 4]
    assert [path.name for path in (workdir / "samples").iterdir()] == ["step_0000004.png"]
