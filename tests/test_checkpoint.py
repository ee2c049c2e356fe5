"""Checkpoints: what is read is what was written, on any mesh, or it is refused and the one before is used."""

import dataclasses
import errno
import gc
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pom_jax.errors import InputError
from pom_jax.training import checkpoint, digest
from pom_jax.training.checkpoint import DamagedCheckpoint, files
from pom_jax.training.checkpoint.space import what_is_missing
from pom_jax.training.checkpoint.trouble import reading
from pom_jax.training.state import TrainState, initial_state
from tests.failing_calls import CAN_FAIL


def make_state(seed: int = 0, width: int = 64) -> TrainState:
    def params(key: jax.Array) -> dict[str, Any]:
        return {"blocks": {"kernel": jax.random.normal(key, (2, width, 8))}, "out": {"bias": jnp.arange(3.0)}}

    state = initial_state(jax.random.key(seed), params, optax.adam(1e-3), 2)
    doubled = jax.tree.map(lambda x: 2 * x, state.params)
    return dataclasses.replace(state, ema=(state.params, doubled))


def target(state: TrainState) -> Any:
    at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state)


def save(workdir: Path, steps: dict[int, float | None], keep_last: int = 2, keep_best: int = 0) -> None:
    saver = checkpoint.Checkpoints(workdir, keep_last=keep_last, keep_best=keep_best)
    for step, loss in steps.items():
        saver.save(step, make_state(step), loss)
    saver.close()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("two_steps")
    save(workdir, {1: None, 2: None})
    return workdir


@pytest.mark.smoke
def test_what_is_read_is_what_was_written(two_steps: Path) -> None:
    state, step = checkpoint.restore_state(two_steps, target(make_state())) or pytest.fail("nothing there")
    assert step == 2
    assert digest.digests(state) == digest.digests(make_state(2))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(2))


def test_parameters_are_read_alone(two_steps: Path) -> None:
    expected = make_state(1)
    for ema, tree in ((None, expected.params), (0, expected.ema[0]), (1, expected.ema[1])):
        params, step = checkpoint.restore_params(two_steps, step=1, ema=ema)
        assert step == 1
        chex.assert_trees_all_equal(params, tree)
    assert checkpoint.restore_params(two_steps)[1] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"step": 7}, r"no checkpoint of step 7.*\[1, 2\]"), ({"ema": 2}, "holds 2 averages")],
)
def test_what_is_not_there_is_said(two_steps: Path, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checkpoint.restore_params(two_steps, **arguments)


def test_a_run_that_has_saved_nothing_is_named_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint in .* yet; let train\.py run in that workdir"):
        checkpoint.parameter_shapes(tmp_path, None, 0)


def files_of_newest(workdir: Path) -> list[Path]:
    return sorted(path for path in (workdir / "checkpoints" / "2").rglob("*") if path.is_file())


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_arrays(step: Path) -> Path:
    """The largest file, which holds numbers."""
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError("Timed out"), "a file of the checkpoints cannot be read: no answer in time"),
        (OSError(errno.EIO, "Input/output error", "/mnt/a"), "/mnt/a cannot be read: Input/output error"),
        (
            ValueError('"/mnt/b": Stale file handle [os_error_code=\'116\'] ["/c"]'),
            "/mnt/b cannot be read: Stale",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "/mnt/a"), None),
        (ValueError("NOT_FOUND: \"/mnt/b\": No such file or directory [os_error_code='2']"), None),
        (ValueError("DATA_LOSS: the checksum is wrong"), None),
    ],
)
def test_what_the_storage_says_is_of_the_disk_or_of_the_file(error: Exception, said: str | None) -> None:
    @reading()
    def read() -> None:
        raise DamagedCheckpoint("the arrays cannot be read") from error

    with pytest.raises(InputError if said else DamagedCheckpoint, match=said):
        read()


def test_a_step_is_not_touched_before_its_files_are_listed(tmp_path: Path) -> None:
    saver = checkpoint.Checkpoints(tmp_path, keep_last=2, keep_best=0)
    saver.save(1, make_state(1))
    saver._manager.wait_until_finished()
    step = tmp_path / "checkpoints" / "1"
    for number in range(5000):
        (step / str(number)).touch()
    saver.save(2, make_state(2))  # from here on the storage may delete the other
    assert (step / files.FILE).exists()
    saver.close()


def test_a_step_whose_files_a_killed_process_did_not_list_has_them_listed(
    two_steps: Path, tmp_path: Path
) -> None:
    shutil.copytree(two_steps, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "2"
    listed = json.loads((step / files.FILE).read_text())
    (step / files.FILE).unlink()
    checkpoint.Checkpoints(tmp_path / "run", keep_last=2, keep_best=0).close()
    assert json.loads((step / files.FILE).read_text()) == listed


@pytest.mark.filterwarnings("ignore")  # of coroutines and event loops that the storage left half made
def test_a_file_system_in_trouble_is_not_taken_for_damage(two_steps: Path, tmp_path: Path) -> None:
    shutil.copytree(two_steps, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "2"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)  # the lowest number that a file could have
    os.close(free)
    for spare in (0, 3):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
        try:
            with pytest.raises(InputError, match=r"Too many open files.*: allow more open files") as told:
                checkpoint.restore_state(tmp_path / "run", target(make_state()))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert told.value.exit_code == 74, "a restart loop tries again"
    for file in (of_arrays(newest), newest / "leaves" / "metadata"):
        content = file.read_bytes()
        file.unlink()
        file.symlink_to(file)  # says as little of what was written as a stale handle or an unreadable sector
        for list_of_files in (newest / files.FILE, newest / "none"):
            list_of_files.unlink(missing_ok=True)
            with pytest.raises(InputError, match=rf"{file} cannot be read: Too many levels .* no") as told:
                checkpoint.restore_state(tmp_path / "run", target(make_state()))
        file.unlink()
        file.write_bytes(content)
    assert checkpoint.saved_steps(tmp_path / "run") == [1, 2], "nothing was moved away"
    assert (checkpoint.restore_state(tmp_path / "run", target(make_state())) or pytest.fail("nothing"))[
        1
    ] == 2
    gc.collect()  # the halves


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
def test_damage_of_any_file_is_noticed_and_the_step_before_is_used(
    two_steps: Path, tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    good = digest.digests(make_state(1))
    for index, file in enumerate(files_of_newest(two_steps)):
        name = file.relative_to(two_steps / "checkpoints" / "2").as_posix()
        if (damage is Path.unlink and name == files.FILE) or not file.stat().st_size:
            continue  # see below
        workdir = tmp_path / str(index)
        shutil.copytree(two_steps, workdir)
        damage(workdir / file.relative_to(two_steps))
        caplog.clear()
        state, step = checkpoint.restore_state(workdir, target(make_state())) or pytest.fail("nothing there")
        assert (step, digest.digests(state)) == (1, good), name
        assert (workdir / "damaged" / "2").is_dir()
        assert f"the file {name} " in caplog.text, "loud, with the file's name"
        if damage is flip_bit and name != files.FILE:
            assert f"the file {name} is not what was written (other content)" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax closes its loop early
@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
def test_without_the_list_of_files_no_wrong_number_passes(
    two_steps: Path, tmp_path: Path, damage: Any
) -> None:
    """As in a process that was killed right after the commit: the digests of the leaves are left."""
    good = {step: digest.digests(make_state(step)) for step in (1, 2)}
    fallbacks = 0
    for index, file in enumerate(files_of_newest(two_steps)):
        workdir = tmp_path / str(index)
        shutil.copytree(two_steps, workdir)
        damage(workdir / file.relative_to(two_steps))
        (workdir / "checkpoints" / "2" / files.FILE).unlink(missing_ok=True)
        state, step = checkpoint.restore_state(workdir, target(make_state())) or pytest.fail("nothing there")
        assert digest.digests(state) == good[step], file
        assert (workdir / "damaged" / "2").exists() == (step == 1)
        fallbacks += step == 1
    assert fallbacks >= 2  # the arrays and the list of digests at least; other files carry nothing


def test_damaged_parameters_are_refused_in_one_message(
    two_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    shutil.copytree(two_steps, tmp_path / "run")
    for file in files_of_newest(tmp_path / "run"):
        if file.parent.name == "d":
            flip_bit(file)
    with pytest.raises(InputError, match=r"step 2 .* is damaged.*choose another step of \[1\]"):
        checkpoint.restore_params(tmp_path / "run")
    assert not told, "every leaf has its own traceback"


def test_wrong_numbers_are_noticed_though_the_storage_does_not(two_steps: Path, tmp_path: Path) -> None:
    """The list of digests of one state beside the arrays of another, as a flipped bit would leave it."""
    shutil.copytree(two_steps, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints"
    shutil.copy(path / "1" / "leaves" / "metadata", path / "2" / "leaves" / "metadata")
    assert (checkpoint.restore_state(tmp_path / "run", target(make_state())) or pytest.fail("nothing"))[
        1
    ] == 1


def test_when_all_are_damaged_nothing_is_restored_silently(two_steps: Path, tmp_path: Path) -> None:
    shutil.copytree(two_steps, tmp_path / "run")
    for step in ("1", "2"):
        (tmp_path / "run" / "checkpoints" / step / "leaves" / "metadata").unlink()
    with pytest.raises(InputError, match=r"no checkpoint .* can be read"):
        checkpoint.restore_state(tmp_path / "run", target(make_state()))
    assert checkpoint.saved_steps(tmp_path / "run") == [1, 2], "nothing was moved away"


def test_a_checkpoint_of_another_model_is_refused(two_steps: Path) -> None:
    with pytest.raises(
        InputError, match=r"another model(.|\n)*params/blocks/kernel: \[2, 64, 8\].*\[2, 32, 8\]"
    ):
        checkpoint.restore_state(two_steps, target(make_state(width=32)))
    assert checkpoint.saved_steps(two_steps) == [1, 2], "nothing was moved away"


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    losses = {1: 0.5, 2: 0.1, 3: None, 4: 0.3, 5: 0.4, 6: None}
    save(tmp_path, losses, keep_last=2, keep_best=1)
    assert checkpoint.saved_steps(tmp_path) == [2, 5, 6]


def test_milestones_stay_for_ever(tmp_path: Path) -> None:
    saver = checkpoint.Checkpoints(tmp_path, keep_last=1, keep_best=0, keep_every=4)
    for step in range(2, 11, 2):
        saver.save(step, make_state(step))
    saver.close()
    assert checkpoint.saved_steps(tmp_path) == [4, 8, 10]


def test_the_best_stays_when_a_run_goes_on(tmp_path: Path) -> None:
    save(tmp_path, {1: 0.1, 2: math.nan, 3: 0.5}, keep_last=1, keep_best=1)
    assert checkpoint.saved_steps(tmp_path) == [1, 3], "a loss that is no number is none"
    saver = checkpoint.Checkpoints(tmp_path, keep_last=1, keep_best=1, losses={1: 0.1, 3: 0.5})
    saver.save(4, make_state(4), 0.3)
    saver.close()
    assert checkpoint.saved_steps(tmp_path) == [1, 4]


def test_an_unfinished_checkpoint_does_not_count(two_steps: Path, tmp_path: Path) -> None:
    shutil.copytree(two_steps, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "2").rename(folder / "3.orbax-checkpoint-tmp")
    assert checkpoint.latest_step(tmp_path / "run") == 1
    assert checkpoint.latest_step(tmp_path / "nowhere") is None


def test_a_full_disk_is_noticed_before_it_is_full(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs 1000000000.02 GB, but .* GB left, .* GB too little"):
        checkpoint.check_space(tmp_path / "not" / "there", 10**18, "a test")
    checkpoint.check_space(tmp_path, 1, "a test")


def test_what_is_half_written_does_not_count_as_missing(tmp_path: Path) -> None:
    def missing() -> float:
        found = re.search(r"room for [\d.]+ GB: ([\d.]+) GB are missing", what_is_missing(tmp_path, 10**15))
        return float(found[1]) if found else 0.0

    before = missing()
    half = tmp_path / "2.orbax-checkpoint-tmp" / "state"
    half.mkdir(parents=True)
    with (half / "arrays").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2**28)
    assert missing() == pytest.approx(before, abs=0.1), "it is removed by the next start"


WRITE_WITH_A_LIMIT = """
import resource, sys, time
from tests.failing_calls import fail_syncs
from tests.test_checkpoint import make_state
from pom_jax.errors import InputError
from pom_jax.training.checkpoint import Checkpoints
saver = Checkpoints(sys.argv[1], keep_last=2, keep_best=0)
saver.save(1, make_state(1))
saver._wait_for_list()
if sys.argv[3] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))  # what a full disk does to a file that grows
else:
    fail_syncs(int(sys.argv[3]))
try:
    saver.save(2, make_state(2, width=4096))
    if sys.argv[2] == "next":
        saver.save(3, make_state(3, width=4096))  # waits for the one that fails
    while saver.writing:
        time.sleep(0.01)
    saver.wait()  # says so before the next one is due
    print("nobody noticed")
    saver.close()
except InputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("noticed", "disk", "code", "words"),
    [
        ("when it ends", "full", 2, r"a file may have at most 2,000 bytes here .*: make room"),
        ("next", "full", 2, r"a file may have at most 2,000 bytes here .*: make room"),
        ("when it ends", str(errno.EIO), 74, r"\[os_error_code='5'\].*: look at the disk, the mount"),
        ("when it ends", str(errno.EROFS), 2, r"\[os_error_code='30'\].*: make room"),
    ],
)
def test_failed_writing_surfaces_and_the_good_step_stays(
    tmp_path: Path, noticed: str, disk: str, code: int, words: str
) -> None:
    if disk != "full" and not CAN_FAIL:
        pytest.skip("no system call can be made to fail here")
    command = [sys.executable, "-c", WRITE_WITH_A_LIMIT, str(tmp_path), noticed, disk]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert ended.stdout.startswith("a checkpoint could not be written")
    assert "Traceback" not in ended.stderr
    assert re.search(r"the arrays are 0.0\d\d GB, .*the disk has room for [\d.]+ GB; ", ended.stdout)
    assert re.search(words, ended.stdout), ended.stdout
    assert "last good checkpoint is step 1" in ended.stdout
    state, step = checkpoint.restore_state(tmp_path, target(make_state())) or pytest.fail("nothing there")
    assert (step, digest.digests(state)) == (1, digest.digests(make_state(1)))


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_one_flipped_bit_changes_the_digest(dtype: Any) -> None:
    size = jnp.dtype(dtype).itemsize
    array = np.random.default_rng(0).integers(0, 256, 300 * size, np.uint8)
    original = digest.leaf_digest(jnp.asarray(array.view(dtype)))
    for bit in (0, 5, 1000 * size, 2399 * size):
        changed = array.copy()
        changed[bit // 8] ^= 1 << bit % 8
        assert np.all(digest.leaf_digest(jnp.asarray(changed.view(dtype))) != original)


def test_digests_see_two_swapped_values() -> None:
    array = jnp.arange(12.0).reshape(3, 4)
    assert np.all(digest.leaf_digest(array) != digest.leaf_digest(array.at[0, 1].set(2.0).at[0, 2].set(1.0)))


def test_digests_that_were_begun_are_of_the_state_as_it_was() -> None:
    """Though the next step, which the state is donated to, ends before anyone asks; nothing compiles anew."""
    program: Any = digest._digests_of_alike
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        state = jax.device_put({"params": jnp.arange(4096.0)}, NamedSharding(mesh, PartitionSpec()))
        expected, compiled = digest.digests(state), program._cache_size()
        begun = digest.start_digests(state)
        after = jax.jit(lambda old: {"params": old["params"] + 1}, donate_argnums=0)(state)
        assert jax.block_until_ready(after)["params"][0] == 1
        with ThreadPoolExecutor(1) as another:
            assert another.submit(begun).result() == expected
        assert program._cache_size() == compiled


def test_digests_that_were_begun_may_be_of_numpy_arrays_and_random_keys() -> None:
    state = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "key": jax.random.key(3)}
    assert digest.start_digests(state)() == digest.digests(state | {"a": jnp.asarray(state["a"])})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(dtype: Any, value: float) -> None:
    state = {"count": jnp.full(3, -1), "key": jax.random.key(3), "nu": [jnp.ones((2, 5, 7), dtype)] * 2}
    digest.start_digests(state)()
    for place in ((0, 0, 0), (1, 2, 3), (1, 4, 6)):
        wrong = state | {"nu": [state["nu"][0], state["nu"][1].at[place].set(value)]}
        with pytest.raises(digest.NotFinite, match=r"^not finite: nu/1$"):
            digest.start_digests(wrong)()


def test_a_state_that_is_not_finite_does_not_take_the_place_of_a_good_one(tmp_path: Path) -> None:
    saver = checkpoint.Checkpoints(tmp_path, keep_last=1, keep_best=0)
    saver.save(1, make_state(1))
    bad = make_state(2)
    bad.ema[1]["out"]["bias"] = jnp.full(3, jnp.inf)
    saver.save(2, bad)
    with pytest.raises(InputError, match=r"^not finite: ema/1/out/bias$"):
        saver.close()
    assert checkpoint.saved_steps(tmp_path) == [1]


def test_the_list_of_leaves_is_readable(two_steps: Path) -> None:
    listed = json.loads((two_steps / "checkpoints" / "2" / "leaves" / "metadata").read_text())["leaves"]
    assert listed["params/blocks/kernel"]["shape"] == [2, 64, 8]
