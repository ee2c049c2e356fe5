"""Runs whose checkpoints are in a bucket, which a server on this machine plays, and go on anywhere."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from configs import common
from configs import digits as recipe
from pom_jax import cluster, remote
from pom_jax.errors import InputError
from pom_jax.paths import expand_paths
from pom_jax.training import checkpoint, digest, loop, metrics
from pom_jax.training.checkpoint import leaves
from pom_jax.training.config import keep_config
from pom_jax.training.run import make_run
from pom_jax.training.start import find_start
from tests.test_checkpoint import make_state, target

ROOT = Path(__file__).parent.parent
STEPS, EVERY = 240, 60
TINY = {"data.batch_size": 8, "model.width": 8, "model.depth": 1, "optimizer.warmup_steps": 50}
TINY |= {"train.steps": STEPS, "train.checkpoint_every": EVERY, "train.eval_every": EVERY}
TINY |= {"train.eval_size": 16, "train.sample_every": 0, "train.keep_last": 2, "train.keep_best": 1}

Start = Callable[..., subprocess.Popen]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """The bucket gs://bucket, for this process and those that it starts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gcs_server"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it asks for the kind of the bucket
        yield
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def start(digits_dir: Path) -> Start:
    """Starts `python train.py` on a tiny model."""
    fields = TINY | {"data.dir": digits_dir}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"  # compiles in half the time
    )

    def start_process(workdir: Path, place: str = "", *more: str) -> subprocess.Popen:
        command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}"]
        command += [*overrides, f"--config.train.remote={place}", *more]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        with (workdir.parent / f"{workdir.name}.out").open("a") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    return start_process


def said(workdir: Path) -> str:
    return (workdir.parent / f"{workdir.name}.out").read_text()


def rows(workdir: Path) -> list[dict[str, Any]]:
    """All rows, without the fields that are times."""
    return [
        {name: value for name, value in row.items() if not name.startswith(metrics.TIME)}
        for row in metrics.read_rows(workdir)
    ]


def digests(workdir: str | Path, step: int) -> dict[str, Any]:
    return leaves.read_leaves(checkpoint.folder.checkpoints_folder(workdir) / str(step))


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def largest(step: Path) -> Path:
    """The file of a step that holds most of the numbers."""
    sizes = {name: size for name, size in remote.sizes(step).items() if "/d/" in name}
    return step / max(sizes, key=sizes.__getitem__)


def make_best(step: Path) -> None:
    """Lowers the held-out loss of a step to 0 in the rows that are kept with it."""
    file = step / leaves.ITEM / metrics.FILE
    found = [json.loads(line) for line in file.read_text().splitlines()]
    found[int(step.name) - 1]["heldout_loss"] = 0.0
    file.write_text("".join(f"{json.dumps(row)}\n" for row in found))
    (step / checkpoint.files.FILE).unlink()  # else it is damaged


def copy_unfinished(step: Path, to: Path) -> None:
    """What a machine leaves that dies before the last file of a checkpoint is written."""
    for name in remote.sizes(step):
        if name != "commit_success.txt":
            (to / name).write_bytes((step / name).read_bytes())


def test_another_machine_goes_on_from_the_bucket(start: Start, tmp_path: Path) -> None:
    place, whole = "gs://bucket/runs/one", tmp_path / "whole"
    first, second = tmp_path / "first", tmp_path / "second"
    local, process = start(whole), start(first, place)
    while f"step {2 * EVERY} | checkpoint saved" not in said(first):
        assert process.poll() is None, said(first)
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert local.wait() == 0, said(whole)
    steps = remote.folder(place) / "checkpoints"
    copy_unfinished(steps / str(EVERY), steps / str(STEPS - 1))
    checkpoint.files.list_files(steps / str(2 * EVERY))  # if it was killed before it had done so
    flip_bit(largest(steps / str(2 * EVERY)))
    make_best(steps / str(EVERY))
    for number in checkpoint.saved_steps(place):
        if number > 2 * EVERY:  # it was quick
            (steps / str(number) / "commit_success.txt").unlink()

    assert start(second, place).wait() == 0, said(second)
    assert f"goes on after step {EVERY})" in said(second)
    assert f"Step {2 * EVERY}: its checkpoint is damaged" in said(second), "loudly"
    assert f"It was moved to {place}/damaged/{2 * EVERY}." in said(second)
    assert remote.sizes(remote.folder(place) / "damaged" / str(2 * EVERY))
    assert not remote.sizes(steps / str(STEPS - 1)), "what was left of the killed run is removed"
    expected = rows(whole)
    expected[EVERY - 1]["heldout_loss"] = 0.0
    assert rows(second) == expected
    assert digests(place, STEPS) == digests(whole, STEPS)
    kept = checkpoint.saved_steps(place)
    assert kept == [EVERY, STEPS - EVERY, STEPS], "the last two and the best, which is of the other machine"
    assert kept == checkpoint.saved_steps(second), "its config.json says where they are"
    assert {path.name for path in second.iterdir()} == {path.name for path in whole.iterdir()} - {
        "checkpoints"
    }

    params = checkpoint.restore_params(whole)[0]
    for workdir in (place, second):
        chex.assert_trees_all_equal(checkpoint.restore_params(workdir)[0], params)
    samples = tmp_path / "samples.npz"
    command = [sys.executable, "sample.py", f"--workdir={place}", "--num=2", "--steps=2", f"--out={samples}"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert len(np.load(samples)["arr_0"]) == 2

    (second / metrics.FILE).unlink()  # the rows are in the bucket too
    for number, parent in enumerate((place, str(second))):
        _check_branching(parent, whole, expected, tmp_path / f"branch{number}")


def _check_branching(place: str, whole: Path, expected: list[dict[str, Any]], workdir: Path) -> None:
    config = recipe.get_config()
    config.update_from_flattened_dict(TINY)
    config.data.dir = checkpoint.load_config(whole).data.dir
    config.init_from, config.init_state, config.train.steps = place, True, STEPS + 10
    begun = find_start(make_run(config))
    assert begun.step == STEPS
    workdir.mkdir()
    begun.keep_history(workdir)
    assert rows(workdir) == expected


def test_hosts_without_a_common_folder_train_together(start: Start, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    together = [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--config.train.steps={EVERY}"]
    together += ["--config.train.eval_every=0"]
    processes = []
    for number, host in enumerate(hosts):
        host.parent.mkdir()
        processes.append(start(host, "gs://bucket/runs/pod", *together, f"--process={number}"))
    assert [process.wait() for process in processes] == [0, 0], said(hosts[0]) + said(hosts[1])
    assert checkpoint.saved_steps("gs://bucket/runs/pod") == [EVERY]
    assert checkpoint.saved_steps(hosts[0]) == [EVERY]
    assert checkpoint.restore_params("gs://bucket/runs/pod")[1] == EVERY

    hosts[1].joinpath("log.txt").touch()
    alone = start(hosts[1], "gs://bucket/runs/pod", f"--config.train.steps={EVERY + 2}")
    assert alone.wait() == 0, said(hosts[1])
    assert f"goes on after step {EVERY})" in said(hosts[1])
    assert len(rows(hosts[1])) == EVERY + 2


def test_what_is_kept_is_what_would_be_kept_on_a_disk(tmp_path: Path) -> None:
    place = "gs://bucket/kept"
    saver = checkpoint.Checkpoints(place, keep_last=1, keep_best=1, keep_every=4)
    for step, loss in {2: 0.1, 4: 0.5, 5: 0.4}.items():
        saver.save(step, make_state(step), loss)
    saver.close()
    assert checkpoint.saved_steps(place) == [2, 4, 5]
    lines = [f'{{"step": {step}}}\n' for step in range(1, 9)]
    (tmp_path / metrics.FILE).write_text("".join(lines)[:-3])  # of a run that went on while it was copied
    saver = checkpoint.Checkpoints(
        place, keep_last=1, keep_best=1, keep_every=4, losses={2: 0.1, 5: 0.4}, rows=tmp_path / metrics.FILE
    )
    saver.save(6, make_state(6), 0.3)
    saver.close()
    assert checkpoint.saved_steps(place) == [2, 4, 6]
    assert checkpoint.kept_rows(place, 6) == "".join(lines[:6])
    state, step = checkpoint.restore_state(place, target(make_state())) or pytest.fail("nothing there")
    assert (step, digest.digests(state)) == (6, digest.digests(make_state(6)))

    newest = remote.folder(place) / "checkpoints" / "6"
    (newest / "leaves" / "metadata").unlink()
    (newest / checkpoint.files.FILE).unlink()
    state, step = checkpoint.restore_state(place, target(make_state())) or pytest.fail("nothing there")
    assert (step, digest.digests(state)) == (4, digest.digests(make_state(4)))
    assert checkpoint.saved_steps(place) == [2, 4]


def test_a_bucket_that_refuses_is_not_taken_for_damage() -> None:
    with pytest.raises(InputError, match=r"cannot be read: Forbidden.*log in") as told:
        checkpoint.restore_state("gs://closed/run", target(make_state()))
    assert told.value.exit_code == 74, "a restart loop tries again"
    with pytest.raises(InputError, match=r"closed/run/config.json cannot be read: Forbidden.*log in") as told:
        checkpoint.load_config("gs://closed/run")
    with pytest.raises(InputError, match=r"no config\.json in it, or no such bucket"):
        checkpoint.load_config("gs://nowhere/run")


def test_a_bucket_that_does_not_answer_may_answer_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    saver = checkpoint.Checkpoints("gs://bucket/silent", keep_last=1, keep_best=0)
    saver.save(1, make_state(1))
    words = r"bucket/silent/checkpoints: lost;.*See to it: check the network"
    with pytest.raises(remote.Unreachable, match=words), saver._explained():
        raise RuntimeError("lost")
    saver.close()
    with pytest.raises(remote.Unreachable, match=r"train\.remote=gs://broken/run cannot be used: 501"):
        remote.check_bucket("train.remote", "gs://broken/run")

    def fall_silent(*_: Any, **__: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(remote._storage(), "ls", fall_silent)
    with pytest.raises(remote.Unreachable, match=r"gs://bucket/other cannot be listed: no answer"):
        keep_config("gs://bucket/other", common.base())
    with pytest.raises(remote.Unreachable, match="cannot be listed"):
        checkpoint.quarantine("gs://bucket/silent", 1)
    with pytest.raises(InputError, match=r"cannot be read: no answer in time") as told:
        checkpoint.saved_steps("gs://bucket/silent")
    assert told.value.exit_code == 74


def test_errors_of_a_bucket_are_not_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    said = "UNAVAILABLE: Error reading gs://bucket/run: CURL error"
    assert not cluster.is_loss(ValueError(said))
    assert cluster.is_loss(RuntimeError("UNAVAILABLE: heartbeat timeout"))
    told = remote.Unreachable("the bucket is gone")
    told.__cause__ = RuntimeError("UNAVAILABLE: heartbeat timeout")
    assert not cluster.is_loss(told)


def test_all_processes_end_with_the_exit_code_of_the_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_fails(said: str) -> list[str]:
        return [said, "74:the bucket is gone"]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(cluster, "share", other_fails)
    with pytest.raises(InputError, match=r"the bucket is gone \(process 1\)") as told:
        cluster.agree(lambda: 3, InputError)
    assert told.value.exit_code == 74


def test_an_object_for_the_folder_itself_is_no_file_in_it() -> None:
    """gcsfuse and the Cloud Console make such."""
    place, server = "gs://bucket/made/elsewhere", os.environ["STORAGE_EMULATOR_HOST"]
    for name in ("made/elsewhere/", "made/elsewhere/checkpoints/"):
        address = f"{server}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
        urllib.request.urlopen(urllib.request.Request(address, method="POST")).close()
        keep_config(place, recipe.get_config())
    assert remote.names(remote.folder(place)) == {"checkpoints", "config.json"}
    assert remote.sizes(remote.folder(place)).keys() == {"config.json"}
    assert checkpoint.saved_steps(place) == []


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gs://nowhere/run", "there is no bucket 'nowhere', .*gcloud storage buckets create gs://nowhere"),
        ("s3://bucket/run", "give the folder where it is mounted as --workdir, and leave this out"),
        (
            "gs://closed/run",
            r"train.remote=gs://closed/run cannot be used: 403 .*; check the network, log in \(gcloud auth",
        ),
        ("gs://bucket", "train.remote=gs://bucket must be gs://bucket/folder"),
        ("gs://bucket/run[1]", r"train.remote=gs://bucket/run\[1\] must be gs://bucket/folder, without"),
        ("s3://bucket/run", r"s3://bucket/run: Orbax .* writes arrays to gs:// and to file systems alone"),
    ],
)
def test_a_place_that_cannot_be_used_is_said_first(place: str, message: str, tmp_path: Path) -> None:
    config = recipe.get_config()
    config.data.dir = "/nowhere/at/all"
    config.train.remote = place
    with pytest.raises(InputError, match=message) as told:
        loop.train(config, tmp_path / "run", lambda *_: None)
    assert told.value.exit_code == 2, "it will be the same when started again"
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_said_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    remote._storage.cache_clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs:// needs the package gcsfs: pip install -e '\.\[gcs\]'"):
        checkpoint.load_config("gs://bucket/run")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("data.dir", "ArrayRecord files knows no buckets: copy the data set to a disk"),
        ("fid.reference", "is no folder of a file system; mount the bucket"),
    ],
)
def test_what_cannot_be_in_a_bucket_is_said(field: str, message: str) -> None:
    config = common.base()
    config.init_from = "gs://bucket/run/"
    expand_paths(config)
    assert config.init_from == "gs://bucket/run"
    config.update_from_flattened_dict({field: "gs://bucket/a"})
    with pytest.raises(InputError, match=message):
        expand_paths(config)


def test_nothing_is_written_before_all_places_were_looked_at(digits_dir: Path, tmp_path: Path) -> None:
    config = recipe.get_config()
    config.update_from_flattened_dict(
        TINY | {"data.dir": str(digits_dir), "train.remote": "gs://bucket/begun"}
    )
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(InputError, match="photos is not empty and not a workdir"):
        loop.train(config, tmp_path / "photos", lambda *_: None)
    assert not remote.names(remote.folder("gs://bucket/begun"))


def test_a_run_does_not_move_by_another_address(tmp_path: Path) -> None:
    config = recipe.get_config()
    config.train.remote = "gs://bucket/moves/one"
    for place in (config.train.remote, tmp_path / "run"):
        keep_config(place, config)
        keep_config(place, config)
    config.train.remote = ""
    with pytest.raises(
        InputError, match=r"are in gs://bucket/moves/one, not in it: give --config\.train\.rem"
    ):
        keep_config(tmp_path / "run", config)
    with pytest.raises(
        InputError, match=r"gs://bucket/moves is not .*; choose another --config.train.remote"
    ):
        keep_config("gs://bucket/moves", config)
    config.train.remote = "gs://bucket/moves/copy"
    (remote.folder(config.train.remote) / "config.json").write_bytes(
        (remote.folder("gs://bucket/moves/one") / "config.json").read_bytes()
    )
    keep_config(config.train.remote, config)
    assert checkpoint.load_config(config.train.remote).train.remote == config.train.remote
    config.seed = 1
    with pytest.raises(InputError, match=r"gs://bucket/moves/one belongs to another configuration"):
        keep_config("gs://bucket/moves/one", config)


def test_an_address_may_be_a_path() -> None:
    assert str(remote.folder(Path("gs://bucket/runs/x"))) == "gs://bucket/runs/x"
    with pytest.raises(InputError, match="gs://bucket/run is no folder of a file system, and rows and log"):
        loop.train(recipe.get_config(), Path("gs://bucket/run"), lambda *_: None)


def test_a_plan_asks_no_bucket() -> None:
    code = "import runpy, sys; sys.modules['gcsfs'] = None; runpy.run_path('train.py', run_name='__main__')"
    line = [sys.executable, "-c", code, "--config=configs/digits.py", "--dry_run=0"]
    line += ["--config.train.remote=gs://nowhere/run"]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert "--dry-run=0 must be a number of devices" in ended.stderr, "what is looked at after the addresses"


@pytest.mark.parametrize("command", ["sample.py", "eval.py"])
def test_what_is_drawn_from_a_bucket_needs_a_place(command: str) -> None:
    line = [sys.executable, command, "--workdir=gs://bucket/runs/one"]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "--workdir=gs://bucket/runs/one is only read: give --out=" in ended.stderr
