"""The memory of a device: exact for the state, told by the compiler for the rest, estimated beforehand."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import common
from pom_jax.errors import InputError
from pom_jax.ops.mesh import tracing_for
from pom_jax.training import memory
from pom_jax.training.checkpoint import tree_bytes
from pom_jax.training.config import differences
from pom_jax.training.estimate import estimate
from pom_jax.training.fid import Say, Stops
from pom_jax.training.fits import check_fits, exhaustion_in_words
from pom_jax.training.memory import Memory
from pom_jax.training.run import Run, make_run
from tests.test_faults import train

GIB = 2**30


def make(batch_size: int = 64, **model: Any) -> Run:
    config = common.imagenet("DiPoM-S/2")
    config.data.update({"source": "synthetic", "batch_size": batch_size})
    config.model.update({"width": 256, "depth": 4, "num_heads": 2} | model)
    return make_run(config)


def compiled(run: Run) -> Any:
    step = jax.jit(run.step, donate_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
    return step.lower(run.state, run.batch).compile()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_estimate_is_near_what_the_compiler_says(remat: str) -> None:
    run = make(remat=remat)
    with jax.set_mesh(run.mesh):
        said, guess = memory.of_program(compiled(run), run.state, run.batch), estimate(run)
    assert said.parameters == guess.parameters == tree_bytes(run.state.params)
    assert said.optimiser == guess.optimiser == tree_bytes(run.state.opt_state)
    assert said.averages == guess.averages == tree_bytes(run.state.ema)
    assert said.batch == guess.batch == tree_bytes(run.batch)
    assert said.work > 0
    assert 0.9 < guess.together / said.together < 1.1


def test_each_policy_keeps_less_than_the_one_before() -> None:
    def work(remat: str) -> int:
        run = make(remat=remat)
        with jax.set_mesh(run.mesh):
            return estimate(run).work

    found = [work(remat) for remat in ("none", "dots", "states", "full")]
    assert sorted(found, reverse=True) == found
    assert found[0] > 2 * found[-1]


def test_states_are_kept_and_tokens_are_not() -> None:
    """Beside the input of each block: its state [B, K, E], and the six vectors that modulate it."""

    def kept(remat: str, image_size: int) -> list[tuple[int, ...]]:
        run = make(remat=remat, image_size=image_size)
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), run.state.params)
        x = jax.ShapeDtypeStruct((3, image_size, image_size, 4), np.float32)
        t, labels = (jax.ShapeDtypeStruct((3,), dtype) for dtype in (np.float32, np.int32))

        def backward(params: Any, *inputs: jax.Array) -> Any:
            return jax.vjp(lambda p: run.model.apply({"params": p}, *inputs), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(backward, params, x, t, labels))
        return sorted(leaf.shape for leaf in leaves if leaf.shape[:2] == (4, 3))

    assert kept("full", 32) == [(4, 3, 256, 256)]
    assert kept("states", 32) == [(4, 3, 1, 2, 512), (4, 3, 1, 6, 256), (4, 3, 256, 256)]
    assert kept("states", 64) == [(4, 3, 1, 2, 512), (4, 3, 1, 6, 256), (4, 3, 1024, 256)]


def test_what_does_not_fit_says_by_how_much_and_what_each_knob_saves() -> None:
    run = make()
    sizes = Memory(parameters=GIB, optimiser=2 * GIB, averages=GIB, batch=GIB // 4, work=6 * GIB)
    check_fits(sizes, run, 11 * GIB)
    check_fits(sizes, run, None)
    with pytest.raises(InputError) as caught:
        check_fits(sizes, run, 8 * GIB)
    said = str(caught.value)
    assert "needs 10.25 GiB of each device, which has 8.00 GiB: 2.25 GiB too much" in said
    assert "optimizer.moments=bfloat16 (1.00 GiB, new runs only)" in said
    assert "mesh.fsdp" not in said, "there is one device"
    knobs = re.findall(r"--config\.([^ ]+) \(([\d.]+) GiB(, new runs only)?\)", said)
    assert {name for name, *_ in knobs} >= {
        *(f"model.remat={policy}" for policy in ("dots", "states", "full")),
        "optimizer.accumulate=2",
        "data.batch_size=32",
    }
    for name, _, marked in knobs:
        field, _, value = name.partition("=")
        other = run.config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: int(value) if value.isdigit() else value})
        assert bool(differences(run.config, other)) == bool(marked), "what a run that goes on refuses"
    saved = {name: float(size) for name, size, _ in knobs}
    assert list(saved.values()) == sorted(saved.values(), reverse=True), "the most first"
    with jax.set_mesh(run.mesh):
        leaner = estimate(run).work - estimate(make(remat="full")).work
        halved = estimate(run).work - estimate(make(batch_size=32)).work + GIB // 8
    assert saved["model.remat=full"] == pytest.approx(leaner / GIB, abs=0.01)
    assert saved["data.batch_size=32"] == pytest.approx(halved / GIB, abs=0.01)


def test_a_state_that_does_not_fit_is_told_before_it_is_made() -> None:
    run = make()
    arrays = memory.of_arrays(run.state, run.batch)
    with pytest.raises(InputError, match=r"the state of this run alone needs .*optimizer\.moments") as caught:
        check_fits(arrays, run, arrays.together - 1)
    assert "remat" not in str(caught.value)


def test_a_cpu_has_room_for_the_state_that_is_being_written() -> None:
    """Beside that of the steps which go on; unless none does before the end."""
    run = make()
    arrays = memory.of_arrays(run.state, run.batch)
    state = tree_bytes(run.state)
    assert arrays.copied == 2 * state
    with tracing_for("gpu"):
        assert memory.of_arrays(run.state, run.batch).copied == 0
    check_fits(arrays, run, arrays.together + 2 * state)
    with pytest.raises(InputError) as caught:
        check_fits(arrays, run, arrays.together + 2 * state - 1)
    said = str(caught.value)
    assert (
        f"({2 * state / GIB:.2f} GiB of that need is for copies of the state while a checkpoint is written)"
        in said
    )
    assert f"optimizer.moments=bfloat16 ({1.5 * arrays.optimiser / GIB:.2f} GiB, " in said, "of all three"
    assert "more while it is saved" in memory.table(("state", arrays))
    run.config.train.checkpoint_every = run.config.train.steps
    check_fits(arrays, run, arrays.together)


def run_out() -> None:
    jax.block_until_ready(jax.jit(lambda x: jax.numpy.zeros(2**46) + x)(1.0))  # 256 TiB


def test_what_a_device_says_of_its_memory_is_told_with_what_saves_some() -> None:
    run = make()
    with jax.set_mesh(run.mesh):
        whole = estimate(run)
    needed = whole.together + whole.copied

    with pytest.raises(InputError) as caught, exhaustion_in_words(run, GIB):
        run_out()
    said = str(caught.value)
    assert re.search(r"too small \(RESOURCE_EXHAUSTED: Out of memory allocating \d+ bytes", said), said
    assert f"needs {needed / GIB:.2f} GiB of each device" in said
    assert f"which has 1.00 GiB: {(needed - GIB) / GIB:.2f} GiB too much" in said
    assert "--config.optimizer.accumulate=2" in said
    for limit, advice in (
        (None, "--config.optimizer.accumulate=2"),
        (int(needed / 0.9), "--config.optimizer.accumulate=2"),
        (2**50, f"would fit, with {needed / GIB:.2f} GiB of 1,048,576.00 GiB: look for what else"),
    ):
        with pytest.raises(InputError) as caught, exhaustion_in_words(run, limit):
            run_out()
        assert advice in str(caught.value)
        assert "too much" not in str(caught.value)
    assert "optimizer" not in str(caught.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="cholesky"), exhaustion_in_words(run, GIB):
        raise jax.errors.JaxRuntimeError("INTERNAL: cholesky")


class TooLarge:
    """Stands where a run scores itself during training, and finds too little memory for it."""

    name = "score"

    def __init__(self, at: str):
        self._at = at

    def prepare(self, say: Say, moved: Say) -> None:
        if self._at == "prepare":
            run_out()

    def __call__(self, params: Any, step: int, say: Say, moved: Say, stops: Stops) -> dict[str, Any]:
        run_out()
        return {}


@pytest.mark.parametrize("at", ["prepare", "score"])
def test_a_score_that_is_too_large_names_its_own_fields(digits_dir: Path, tmp_path: Path, at: str) -> None:
    words = r"too small for the FID \(RESOURCE.*lower fid\.batch_size, 256 now, .*--config\.fid\.every=0$"
    with pytest.raises(InputError, match=words):
        train(digits_dir, tmp_path / "run", TooLarge(at), **{"train.steps": 2})


OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@pytest.mark.skipif(not OVERCOMMIT.exists() or OVERCOMMIT.read_text() == "1\n", reason="grants any memory")
def test_pictures_that_are_too_large_name_their_own_fields(digits_dir: Path, tmp_path: Path) -> None:
    """Attention of 10,000 pictures with 4,096 tokens each takes 2.7 TB."""
    changes: Any = {"data.source": "synthetic", "data.batch_size": 1}
    changes |= {"model.image_size": 64, "model.patch_size": 1}
    changes |= {"model.mixer": "attention", "model.num_heads": 1, "train.steps": 1}
    changes |= {"train.sample_every": 1, "sampling.num": 10_000, "sampling.steps": 1}
    words = r"small for the pictures drawn .*RESOURCE.*lower sampling\.num, 10,000 now, .*sample_every=0$"
    with pytest.raises(InputError, match=words):
        train(digits_dir, tmp_path / "run", None, **changes)


def test_whatever_else_runs_out_of_memory_is_told_too(digits_dir: Path, tmp_path: Path) -> None:
    changes: Any = {"train.steps": 1, "train.sample_every": 1, "sampling.steps": 1}
    with pytest.raises(InputError, match=r"too small \(RESOURCE.*A training step, as estimated, would fit"):
        train(digits_dir, tmp_path / "run", None, write_images=lambda *_: run_out(), **changes)


def test_the_table_has_a_line_for_each_part() -> None:
    one = Memory(2**20, 2**21, 2**20, 2**18, 2**22)
    lines = memory.table(("compiled", one), ("estimated", one), limit=2**24).splitlines()
    assert lines[0].split() == ["memory", "of", "a", "device,", "MiB", "compiled", "estimated"]
    assert lines[2].split() == ["optimiser", "2.00", "2.00"]
    assert lines[-1].split() == ["together", "8.25", "8.25", "of", "16.00"]


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/pods/one\n", {"pods/one/memory.max": "max\n", "pods/memory.max": "8192\n"}, [8192]),
        ("0::/\n", {"memory.max": "4096\n"}, [4096]),
        (
            "5:cpu:/job\n4:memory,hugetlb:/job/step\n0::/\n",
            {"memory/job/step/memory.limit_in_bytes": "1024\n", "memory/job/memory.limit_in_bytes": "2048\n"},
            [1024, 2048],
        ),
        ("4:memory:/elsewhere\n", {}, []),
        (None, {}, []),
    ],
)
def test_what_a_container_allows_is_found(
    tmp_path: Path, groups: str | None, files: dict[str, str], limits: list[int]
) -> None:
    texts = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    if groups is not None:
        texts["proc/self/cgroup"] = groups
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(memory.group_limits(tmp_path)) == limits
