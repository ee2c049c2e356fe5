"""State that waits in the memory of the host: the same bits, other memory, and words where it cannot be."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits as recipe
from pom_jax.errors import InputError
from pom_jax.ops.mesh import tracing_for
from pom_jax.training import checkpoint, digest, loop, memory, metrics, offload
from pom_jax.training.checkpoint import tree_bytes
from pom_jax.training.estimate import estimate
from pom_jax.training.fits import check_fits
from pom_jax.training.memory import Memory
from pom_jax.training.muon import hidden_matrices
from pom_jax.training.run import Run, make_run
from tests.test_sharding import in_process, said_last

GIB = 2**30
BATCH = 16
FIELDS = ("optimizer.offload", "ema.offload")
FAST = {"xla_backend_optimization_level": 0}


def tiny(folder: str | Path, *offloaded: str, **fields: Any) -> ConfigDict:
    """A small recipe; `offloaded` are of FIELDS, `fields` of any section with `__` for the dot."""
    config = recipe.get_config()
    config.model.update({"width": 16, "depth": 2, "ffn_expansion": 1})
    config.data.update({"dir": str(folder), "batch_size": BATCH})
    config.optimizer.update({"warmup_steps": 0, "schedule": "constant"})
    config.ema.decays = (0.9, 0.99)
    config.train.update({"steps": 4, "eval_every": 2, "eval_size": 16, "sample_every": 4})
    config.train.update({"checkpoint_every": 2, "keep_last": 3})
    config.sampling.update({"sampler": "euler", "steps": 1, "num": 4})
    changes = {name.replace("__", "."): value for name, value in fields.items()}
    config.update_from_flattened_dict(dict.fromkeys(offloaded, True) | changes)
    return config


def on_host(state: Any) -> set[str]:
    """Names of the leaves that lie there; all others must be on the device."""
    places = jax.tree_util.tree_leaves_with_path(state)
    kinds = {digest.path_name(path): leaf.sharding.memory_kind for path, leaf in places}
    assert set(kinds.values()) <= {"device", "pinned_host"}
    return {name for name, kind in kinds.items() if kind == "pinned_host"}


def moments_and_averages(state: Any) -> set[str]:
    """Names of all leaves of optimiser and averages but single numbers and the coefficients of Muon."""
    leaves = jax.tree_util.tree_leaves_with_path({"opt_state": state.opt_state, "ema": state.ema})
    return {digest.path_name(path) for path, leaf in leaves if leaf.shape not in ((), (3, 3))}


def compiled(run: Run) -> Any:
    """The program that training runs."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.state)
    jitted = jax.jit(run.step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=FAST)
    return jitted.lower(run.state, run.batch).compile()


def steps(run: Run, program: Any, state: Any, first: int, last: int) -> Any:
    """The state after some steps."""
    for step in range(first, last):
        rows = run.train.gather(range(step * BATCH, (step + 1) * BATCH))
        batch = {name: jax.device_put(rows[name], shape.sharding) for name, shape in run.batch.items()}
        state, _ = program(state, batch)
    return state


def numbers(workdir: Path) -> list[dict[str, Any]]:
    rows = metrics.read_rows(workdir)
    return [{k: v for k, v in row.items() if not k.startswith(metrics.TIME)} for row in rows]


def saved(workdir: Path, step: int) -> dict[str, Any]:
    path = workdir / checkpoint.FOLDER / str(step) / "leaves" / "metadata"
    return json.loads(path.read_text())["leaves"]


@pytest.fixture(scope="module")
def plain(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of four steps, all of them on the device."""
    workdir = tmp_path_factory.mktemp("runs") / "plain"
    assert loop.train(tiny(digits_dir), workdir, write) == 0
    return workdir


def write(path: Path, images: np.ndarray, *_: Any) -> None:
    path.write_bytes(images.tobytes())


def test_a_run_is_the_same_wherever_its_state_waits(digits_dir: Path, plain: Path, tmp_path: Path) -> None:
    """Steps, held-out losses, pictures and checkpoints; and each goes on from what the other has saved."""
    assert loop.train(tiny(digits_dir, *FIELDS), tmp_path / "host", write) == 0
    half = {"train__steps": 2, "train__sample_every": 0}
    for name, before, after in (("to", (), FIELDS), ("from", FIELDS, ())):
        assert loop.train(tiny(digits_dir, *before, **half), tmp_path / name, write) == 0
        assert loop.train(tiny(digits_dir, *after, train__sample_every=0), tmp_path / name, write) == 0
    for workdir in (tmp_path / "host", tmp_path / "to", tmp_path / "from"):
        assert [saved(workdir, step) for step in (2, 4)] == [saved(plain, step) for step in (2, 4)]
        assert numbers(workdir) == numbers(plain)
    assert "heldout_loss" in numbers(plain)[-1]
    pictures = [
        (folder / "samples" / "step_0000004.png").read_bytes() for folder in (plain, tmp_path / "host")
    ]
    assert pictures[0] == pictures[1]
    assert "kept on the host" in (tmp_path / "host" / "log.txt").read_text()
    assert "kept on the host" not in (plain / "log.txt").read_text()


@pytest.mark.parametrize(
    ("name", "moments"), [("adamw", "float32"), ("lamb", "bfloat16"), ("muon", "float32")]
)
def test_moments_and_averages_lie_on_the_host_and_the_rest_on_the_device(
    digits_dir: Path, name: str, moments: str
) -> None:
    config = tiny(digits_dir, *FIELDS, optimizer__name=name, optimizer__moments=moments)
    run = make_run(config)
    expected = moments_and_averages(run.state)
    parameters = len(jax.tree.leaves(run.state.params))
    matrices = jax.tree.leaves(hidden_matrices(run.state.params), is_leaf=lambda a: isinstance(a, tuple))
    fewer = len(matrices) if name == "muon" else 0
    assert len(expected) == 4 * parameters - fewer, "two moments and two averages of each parameter"
    before = run.fresh_state()
    after = steps(run, compiled(run), before, 0, 1)
    assert on_host(run.state) == on_host(before) == on_host(after) == expected
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before)), "donated, those on the host too"
    only = make_run(tiny(digits_dir, "ema.offload", optimizer__name=name, optimizer__moments=moments))
    assert on_host(only.state) == {name for name in expected if name.startswith("ema/")}


def test_a_checkpoint_is_read_into_the_memory_that_is_asked_for(digits_dir: Path, plain: Path) -> None:
    for fields in ((), FIELDS):
        run = make_run(tiny(digits_dir, *fields))
        state, step = checkpoint.restore_state(plain, run.state) or (None, 0)
        assert step == 4
        assert on_host(state) == on_host(run.state)
        assert bool(on_host(state)) == bool(fields)


def test_accelerators_stream_one_parameter_after_the_other(digits_dir: Path) -> None:
    """Arrays on the host are read by loops alone, each of one parameter; numbers agree to rounding."""
    plain, both = make_run(tiny(digits_dir)), make_run(tiny(digits_dir, *FIELDS))
    with tracing_for("tpu"):
        program = jax.make_jaxpr(both.step)(both.state, both.batch).jaxpr
        moving = compiled(both)
    waiting = {id(variable) for variable in program.invars if is_host(variable)}
    assert len(waiting) == len(moments_and_averages(both.state))
    users = [eqn for eqn in program.eqns if waiting & {id(variable) for variable in eqn.invars}]
    assert {eqn.primitive.name for eqn in users} == {"while"}
    assert len(users) == len(jax.tree.leaves(both.state.params))
    assert [len(waiting & {id(v) for v in eqn.invars}) for eqn in users] == [4] * len(users)

    there = steps(plain, compiled(plain), plain.fresh_state(), 0, 3)
    here = steps(both, moving, both.fresh_state(), 0, 3)
    assert on_host(here) == on_host(both.state)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(there), jax.tree.leaves(here), strict=True):
        if path[0].name != "key":
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=digest.path_name(path))

    params = jax.tree.map(lambda leaf: np.nan * leaf, here.params)
    broken = dataclasses.replace(here, params=params)
    kept = {name: word for name, word in digest.digests(broken).items() if "/" in name}
    after = steps(both, moving, broken, 3, 4)
    assert int(after.skipped) == 1
    found = digest.digests(after)
    assert {name: found[name] for name in kept} == kept, "a step that is not finite moves nothing"


def is_host(variable: Any) -> bool:
    return getattr(variable.aval, "memory_space", None) == jax.memory.Space.Host


def test_what_is_on_the_device_is_not_touched() -> None:
    tree = {"a": np.zeros(3), "b": jax.numpy.ones(2)}
    assert jax.make_jaxpr(offload.on_device)(tree).eqns == []


def test_the_memory_of_the_host_is_counted_apart(digits_dir: Path) -> None:
    plain, both = make_run(tiny(digits_dir)), make_run(tiny(digits_dir, *FIELDS))
    numbers = sum(leaf.size * 4 for leaf in jax.tree.leaves(both.state.opt_state) if not leaf.ndim)
    moved = tree_bytes(plain.state.opt_state) - numbers + tree_bytes(plain.state.ema)
    found = memory.of_arrays(both.state, both.batch)
    assert (found.host, found.optimiser, found.averages) == (moved, numbers, 0)
    assert memory.of_arrays(plain.state, plain.batch).together == found.together + moved

    def needed(run: Run) -> tuple[Memory, Memory]:
        with jax.set_mesh(run.mesh):
            return memory.of_program(compiled(run), run.state, run.batch), estimate(run)

    for there, here in zip(needed(plain), needed(both), strict=True):
        assert here.host == moved
        assert here.work == pytest.approx(there.work, rel=0.02)
    assert "kept on the host" in memory.table(("compiled", found)).splitlines()[-1]
    assert "kept on the host" not in memory.table(("compiled", dataclasses.replace(found, host=0)))


def test_what_comes_back_for_the_update_is_in_the_estimate(digits_dir: Path) -> None:
    """Beside the gradient there are the moments and averages of one parameter."""
    run = make_run(tiny(digits_dir, *FIELDS, data__batch_size=1))
    sizes = [tree_bytes(leaf) for leaf in jax.tree.leaves(run.state.params)]
    assert memory.largest_on_host(run.state) == 4 * max(sizes)
    assert memory.largest_on_host(make_run(tiny(digits_dir)).state) == 0
    with jax.set_mesh(run.mesh):
        assert estimate(run).work >= sum(sizes) + 4 * max(sizes)


@pytest.fixture
def gpu() -> Iterator[None]:
    with tracing_for("gpu"):
        yield


def advice(run: Run, needed: Memory, limit: int) -> str:
    with pytest.raises(InputError) as caught:
        check_fits(needed, run, limit)
    return str(caught.value)


@pytest.mark.usefixtures("gpu")
def test_advice_names_what_can_wait_on_the_host(digits_dir: Path) -> None:
    run = make_run(tiny(digits_dir))
    state = Memory(parameters=GIB, optimiser=2 * GIB, averages=GIB, batch=0)
    said = advice(run, state, 3 * GIB)
    assert "--config.optimizer.offload=True (2.00 GiB)" in said
    assert "--config.ema.offload=True (1.00 GiB)" in said
    large = make_run(tiny(digits_dir, model__width=256, model__depth=4, data__batch_size=1024))
    with jax.set_mesh(large.mesh):
        whole = estimate(large)
    said = advice(large, whole, whole.together - 1)
    assert f"--config.optimizer.offload=True ({whole.optimiser / GIB:.2f} GiB)" in said
    done = make_run(tiny(digits_dir, *FIELDS))
    said = advice(done, dataclasses.replace(state, optimiser=4, averages=0, host=3 * GIB), GIB // 2)
    assert "offload" not in said
    assert "moments" not in said, "they are on the host already"


def test_a_cpu_has_one_memory(digits_dir: Path) -> None:
    run = make_run(tiny(digits_dir, *FIELDS))
    needed = Memory(parameters=GIB, optimiser=0, averages=0, batch=0, host=3 * GIB)
    check_fits(needed, run, 4 * GIB)
    mesh: Any = jax.sharding.AbstractMesh((4,), ("data",))
    said = advice(dataclasses.replace(run, mesh=mesh), needed, 3 * GIB)
    assert "needs 4.00 GiB of each device, which has 3.00 GiB" in said
    assert "mesh.fsdp=4 (3.00 GiB)" in said
    plain = dataclasses.replace(needed, optimiser=2 * GIB, host=0)
    assert "offload" not in advice(make_run(tiny(digits_dir)), plain, 2 * GIB)


@pytest.mark.usefixtures("gpu")
def test_a_host_without_room_is_told(digits_dir: Path) -> None:
    needed = Memory(parameters=GIB, optimiser=0, averages=0, batch=0, host=3 * GIB)
    run = make_run(tiny(digits_dir, *FIELDS))
    check_fits(needed, run, 2 * GIB, 3 * GIB)
    with pytest.raises(InputError, match=r"on the host needs 3\.00 GiB .* is 2\.00 GiB: set optimizer\.off"):
        check_fits(needed, run, 2 * GIB, 2 * GIB)


@pytest.mark.parametrize("field", FIELDS)
def test_devices_that_cannot_are_told_of_first(
    digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """Devices refuse a kind of memory that they do not have: here one of that none has."""
    monkeypatch.setattr(offload, "HOST", "no_such_memory")
    with pytest.raises(InputError, match=rf"{field}=True: devices of the kind 'cpu' .*leave it at False"):
        loop.train(tiny(digits_dir, field), tmp_path / "run", write)
    assert not (tmp_path / "run").exists()
    make_run(tiny(digits_dir))


def on_mesh() -> None:
    """Prints what eight devices, data 2 x fsdp 4, do with the state on them and on the host."""
    folder, workdir = Path(sys.argv[1]), Path(sys.argv[2])
    mesh = {"mesh__data": 2, "mesh__fsdp": 4}
    plain, both = make_run(tiny(folder, **mesh)), make_run(tiny(folder, *FIELDS, **mesh))
    with jax.set_mesh(plain.mesh):
        without, moving = compiled(plain), compiled(both)
        whole = steps(plain, without, plain.fresh_state(), 0, 3)
        half = steps(both, moving, both.fresh_state(), 0, 2)
        saver = checkpoint.Checkpoints(workdir, keep_last=1, keep_best=0)
        saver.save(2, half)
        end = steps(both, moving, half, 2, 3)  # takes the place of what is being written
        saver.close()
        other, _ = checkpoint.restore_state(workdir, plain.state) or (None, 0)
        kinds = [sorted(on_host(state)) == sorted(moments_and_averages(state)) for state in (whole, end)]
        apart = [len(leaf.sharding.device_set) for leaf in jax.tree.leaves(end.ema)]
        ends = [digest.digests(state) for state in (whole, end, steps(plain, without, other, 2, 3))]
    found: dict[str, Any] = {
        "kinds": kinds,
        "same": [a == ends[0] for a in ends],
        "devices": sorted(set(apart)),
    }
    parts = [memory.of_arrays(run.state, run.batch) for run in (plain, both)]
    found["bytes"] = [[part.together, part.host] for part in parts]
    print(json.dumps(found))


def test_eight_devices_end_with_the_same_bits(digits_dir: Path, tmp_path: Path) -> None:
    program = "from tests.test_offload import on_mesh; on_mesh()"
    found = said_last(in_process("-c", program, str(digits_dir), str(tmp_path / "run")))
    assert found["same"] == [True, True, True]
    assert found["kinds"] == [False, True]
    assert found["devices"] == [8]
    (together, nothing), (less, host) = found["bytes"]
    assert nothing == 0
    assert together == less + host
