"""Several processes as one run, with real ones: killed, told to stop, started again as more or fewer."""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import common
from pom_jax import cluster
from pom_jax.data import digits
from pom_jax.errors import InputError
from pom_jax.evaluation.inception import POOL
from pom_jax.paths import argument_path, expand_paths, local_path
from pom_jax.training import checkpoint, metrics
from tests.random_inception import write_random_inception

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "scripts" / "launch.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
STEPS, EVERY = 240, 40
DEVICES = 4  # of all processes together, so that the mesh is the same


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("told", "message"),
    [
        (("node1:8476", None, None), "--processes, --process missing"),
        ((None, 2, 0), "--coordinator missing"),
        (("node1", 2, 0), "--coordinator=node1 must be HOST:PORT"),
        (("node1:8476", 0, 0), "--processes=0 must be at least 1"),
        (("node1:8476", 2, 2), "--process=2 must be from 0 to 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(told: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cluster.join(*told)


def test_nobody_there_is_said_before_jax_begins() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match="nobody answers there for 0 s"):
            cluster.join(address, 2, 1, patience=0)
        taken.listen()
        with pytest.raises(InputError, match="process 0 cannot listen at port"):
            cluster.join(address, 2, 0)


ALONE = """
import os
from pom_jax import cluster
assert cluster.join() is None and cluster.join(processes=1) is None
os.environ["OMPI_COMM_WORLD_SIZE"] = "4"
cluster.join()
"""


def test_alone_nothing_happens_but_one_of_an_unknown_cluster_is_not_alone() -> None:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ALONE]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert "InputError: OMPI_COMM_WORLD_SIZE=4: this is one of several processes" in ended.stderr


def test_what_is_wrong_is_raised_as_it_was() -> None:
    def fail() -> None:
        raise InputError("the disk is full")

    with pytest.raises(InputError, match="the disk is full"):
        cluster.first_does(fail)
    assert cluster.agree(lambda: 3, InputError) == 3
    with pytest.raises(InputError), cluster.one_for_all():
        fail()


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error [::1]:2: Connection reset by peer", 1),
        ("FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed by peer [10.0.0.2]:41", 1),
        ("INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat timeout.", 1),
        ("DEADLINE_EXCEEDED: Barrier timed out. Id: a::0.", 1),
        ("Timed out while waiting for async_write_complete barrier.", 1),
        ("DEADLINE_EXCEEDED: GetKeyValue() timed out with key: nokey and duration: 3s", 1),
        ("INTERNAL: NCCL operation failed: remote process exited or there was a network error", 1),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 70368744177664 bytes.", 0),
        ("INTERNAL: CpuCallback error calling callback: Traceback (most recent call last):\n barrier()", 0),
        ("INVALID_ARGUMENT: Argument does not match host shape or layout of computation parameter 0", 0),
    ],
)
def test_a_lost_process_is_told_from_an_error_of_this_one(said: str, lost: int) -> None:
    assert cluster.tells_of_loss(said) == bool(lost)


def launch(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(LAUNCH), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)


@pytest.fixture
def script(tmp_path: Path) -> str:
    """A command that counts its starts, and ends as its last argument says for each: a code or a signal.

    Where that is written "9@1,000" it says before that it has saved step 1,000.
    """
    path = tmp_path / "script.py"
    path.write_text(
        "import os, sys, time\n"
        "place = sys.argv[0] + '.starts'\n"
        "first = not any(a.startswith('--process=') for a in sys.argv) or '--process=0' in sys.argv\n"
        "open(place, 'a').write('x' * first)\n"
        "print('here', *sys.argv[2:])\n"
        "if not first: time.sleep(30)\n"
        "end, _, saved = sys.argv[1].split(' ')[len(open(place).read()) - 1].partition('@')\n"
        "if saved: print('step', saved, '| checkpoint saved')\n"
        "end = int(end)\n"
        "os.kill(os.getpid(), -end) if end < 0 else sys.exit(end)\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("ends", "restarts", "starts", "code"),
    [
        ("-9 1 0", 5, 3, 0),
        ("-9 2 0", 5, 2, 2),
        ("3 0", 5, 1, 3),
        ("75 75 75", 1, 2, 75),
        ("143 0", 1, 2, 0),
        ("0", 3, 1, 0),
        ("143@900 -9@1,000 1@1,000 0", 1, 3, 1),
    ],
)
def test_what_died_is_started_again_and_what_is_done_or_wrong_is_not(
    script: str, ends: str, restarts: int, starts: int, code: int
) -> None:
    ended = launch(f"--restarts={restarts}", "--", script, ends)
    assert ended.returncode == code
    assert len(Path(f"{script}.starts").read_text()) == starts
    assert ended.stderr.count("launch: starting again") == starts - 1


def test_one_line_says_which_process_died_and_how(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    ended = launch("--processes=2", "--", script, "-9")
    assert ended.returncode == 137
    assert "process 0 of 2 (pid " in ended.stderr
    assert ") was ended by SIGKILL; the others are ended" in ended.stderr
    assert "[0] here --coordinator=127.0.0.1:" in ended.stdout
    assert "[1] here" in ended.stdout
    assert time.monotonic() - began < 25, "the others are not waited for"


TOGETHER = """
import os, sys, time
number = int(sys.argv[-1].removeprefix("--process="))
print("hello", flush=True)
time.sleep(max(0, float(sys.argv[1]) - time.time()))  # all end at once
{}
"""


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        (
            "print(f'error: process {number} of 3 on h{number}: no such field:\\n  x'); sys.exit(2)",
            2,
            "no such",
        ),
        ("number == 1 and sys.exit(9); print(f'error: process {number} gone'); sys.exit(75)", 9, "gone"),
        ("number == 1 and os._exit(9); print('gone', flush=True); time.sleep(0.01); os.abort()", 9, "gone"),
    ],
)
def test_what_all_processes_say_is_shown_once(tmp_path: Path, program: str, code: int, words: str) -> None:
    path = tmp_path / "script.py"
    path.write_text(TOGETHER.format(program))
    ended = launch("--processes=3", "--", str(path), str(time.time() + 2))
    assert ended.returncode == code, "not that of those that only say that another is gone"
    assert ended.stdout.count("hello") == 3
    assert ended.stdout.count(words) == (1 if code == 2 else 2)
    assert ended.stdout.count("\n  x") <= 1


def test_a_process_that_somebody_else_terminates_is_not_waited_for(script: str) -> None:
    began = time.monotonic()
    assert launch("--processes=2", "--", script, "-15").returncode == 143
    assert time.monotonic() - began < 25, "the other was not asked to stop"


SAVING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: print("told"))
print("ready")
time.sleep(20 if sys.argv[1:] == ["long"] else 2)
sys.exit(143)
"""


@pytest.mark.parametrize(
    ("first", "second", "long", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, "", 143),
        (signal.SIGTERM, signal.SIGINT, "long", 137),
        (signal.SIGINT, signal.SIGINT, "long", 137),
    ],
)
def test_a_launcher_told_twice_lets_a_run_save_but_for_ctrl_c(
    tmp_path: Path, first: signal.Signals, second: signal.Signals, long: str, code: int
) -> None:
    (tmp_path / "script.py").write_text(SAVING)
    command = [sys.executable, str(LAUNCH), "--restarts=3", "--", str(tmp_path / "script.py"), long]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "ready\n"
        launcher.send_signal(first)
        time.sleep(0.3)
        launcher.send_signal(second)
        assert launcher.stdout.read() == ("told\n" if first is signal.SIGTERM else ""), "handed on once"
    assert launcher.returncode == code


ONE_CANNOT_WRITE = """
import os, resource, sys, time
import numpy as np
from pom_jax import cluster
told = [argument.partition("=")[2] for argument in sys.argv[2:]]
cluster.join(told[0], int(told[1]), int(told[2]))
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from pom_jax.training import memory
from pom_jax.training.checkpoint import Checkpoints
from pom_jax.training.digest import NotFinite
with cluster.one_for_all():
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = min([machine, *memory.group_limits()])
    assert memory.device_bytes() == allowed // 2, "two processes share it"
    at = NamedSharding(jax.make_mesh((2,), ("data",)), P("data"))
    numbers = np.random.default_rng(int(told[2])).normal(size=(4096, 64)).astype(np.float32)
    state = {"a": jax.make_array_from_process_local_data(at, numbers)}
    saver = Checkpoints(sys.argv[1], keep_last=2, keep_best=0)
    copies = np.full(8, np.nan if told[2] == "1" else 0, np.float32)
    one_is_wrong = {"b": jax.make_array_from_process_local_data(NamedSharding(at.mesh, P()), copies)}
    try:
        saver.save(1, one_is_wrong)
    except NotFinite as error:
        print(error)
    if told[2] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    saver.save(1, state)
    while saver.writing:
        time.sleep(0.05)
    saver.wait()
    time.sleep(30)  # training goes on
"""


def test_a_process_that_cannot_write_does_not_wait_for_those_that_can(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ONE_CANNOT_WRITE)
    began = time.monotonic()
    ended = launch("--processes=2", "--devices=1", "--", str(tmp_path / "script.py"), str(tmp_path / "run"))
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stdout.count("] not finite: b\n") == 2, "a copy that one alone has is seen by both"
    assert "[1] error: process 1 of 2 on" in ended.stdout
    assert "a checkpoint could not be written to" in ended.stdout
    assert "there is no good checkpoint yet" in ended.stdout
    assert time.monotonic() - began < 50


ONE_FALLS_SILENT = """
import os, signal, sys, time
from pathlib import Path
from pom_jax import cluster, heartbeat
heartbeat.SILENCE, heartbeat.PULSE = 3.0, 0.25
told = [argument.partition("=")[2] for argument in sys.argv[3:]]
cluster.join(told[0], int(told[1]), int(told[2]))
with heartbeat.Heartbeat(Path(sys.argv[1])):
    if told[2] == "2":
        sys.exit()  # in good order, and waits for the others
    time.sleep(5)
    if told[2] == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(30)
"""


@pytest.mark.parametrize("silent", [0, 1])
def test_a_process_that_falls_silent_ends_the_others_with_a_line(tmp_path: Path, silent: int) -> None:
    (tmp_path / "script.py").write_text(ONE_FALLS_SILENT)
    log = tmp_path / "log.txt"
    ended = launch("--processes=3", "--devices=1", "--", str(tmp_path / "script.py"), str(log), str(silent))
    assert ended.returncode == cluster.LOST, ended.stdout + ended.stderr
    line = rf"error: process {1 - silent} of 3 on \S+: another process is gone: process {silent} has given no"
    assert re.search(line, log.read_text())
    assert re.search(line, ended.stdout)
    assert "process 2 has" not in ended.stdout, "it has left"


Start = Callable[..., subprocess.Popen]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts a tiny run of so many processes; workdir, fields, devices, script and flags may differ."""
    folder = tmp_path_factory.mktemp("cluster")
    digits.prepare(folder / "digits")
    fields = {
        "data.dir": folder / "digits",
        "data.batch_size": 8,
        "model.width": 8,
        "model.depth": 1,
        "optimizer.warmup_steps": 5,
        "train.steps": STEPS,
        "train.checkpoint_every": EVERY,
        "train.eval_every": 120,
        "train.eval_size": 8,
        "train.sample_every": 0,
        "mesh.data": 2,
        "mesh.fsdp": 2,
    }
    environment = ENVIRONMENT | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start_processes(
        workdir: Path,
        processes: int,
        changes: dict[str, Any] | None = None,
        devices: int = DEVICES,
        script: Path = ROOT / "train.py",
        flags: Sequence[str] = (),
    ) -> subprocess.Popen:
        given = fields | (changes or {})
        command = [sys.executable, str(LAUNCH), f"--processes={processes}"]
        command += [f"--devices={devices // processes}", "--", str(script), "--config=configs/digits.py"]
        command += [f"--workdir={workdir}", *flags]
        command += [f"--config.{name}={value}" for name, value in given.items()]
        with (workdir.parent / f"{workdir.name}.out").open("a") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    return start_processes


SLOW_READING = """
import runpy, sys, time
from pom_jax.data.records import Records
gather, reads = Records.gather, []

def slow(self, indices):
    reads.append(indices)
    time.sleep(4 if len(reads) in (11, 51) else 0)  # steps 10 and 50, after the held-out images
    return gather(self, indices)

if "--process=1" in sys.argv:
    Records.gather = slow
runpy.run_path("train.py", run_name="__main__")
"""


NO_ROOM = """
import runpy, sys
import jax
from pom_jax.data.records import Records
gather, reads = Records.gather, []

def exhaust(self, indices):
    reads.append(indices)
    if len(reads) == 4:  # after the held-out images
        jax.jit(lambda x: jax.numpy.zeros(2**46) + x)(1.0)  # 256 TiB
    return gather(self, indices)

if "--process=1" in sys.argv:
    Records.gather = exhaust
runpy.run_path("train.py", run_name="__main__")
"""


def test_memory_that_one_process_lacks_is_told_in_words_before_the_others_end(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(NO_ROOM)
    launcher = start(tmp_path / "run", 2, script=tmp_path / "script.py")
    said = (launcher.wait(), (tmp_path / "run.out").read_text())
    assert said[0] == 2, said[1]
    assert re.search(r"error: process 1 of 2 on \S+: the memory of a device is too small \(RESOURCE", said[1])
    assert "Traceback" not in said[1]


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two processes, of which the second takes long to read two of its batches."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "slow.py").write_text(SLOW_READING)
    launcher = start(folder / "run", 2, {"train.stuck_after": 2}, script=folder / "slow.py")
    assert launcher.wait() == 0, (folder / "run.out").read_text()
    return folder / "run"


def children(launcher: subprocess.Popen) -> list[int]:
    """The processes that a launcher has started, in their order."""
    listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    return [int(word) for word in listed.split()]


def wait_for(launcher: subprocess.Popen, path: Path, words: str, times: int = 1) -> None:
    deadline = time.monotonic() + 200
    while not path.exists() or path.read_text().count(words) < times:
        assert launcher.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rows(workdir: Path) -> list[dict[str, Any]]:
    """All rows, without the fields that are times."""
    return [
        {name: value for name, value in row.items() if not name.startswith(metrics.TIME)}
        for row in metrics.read_rows(workdir)
    ]


def leaves(workdir: Path) -> dict[str, Any]:
    path = workdir / checkpoint.FOLDER / str(STEPS) / "leaves" / "metadata"
    return json.loads(path.read_text())["leaves"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_all_compile_ends_all_at_once(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    said = tmp_path / "run.out"
    launcher = start(tmp_path / "run", 2)
    wait_for(launcher, said, "compiling the training step")
    began = time.monotonic()
    launcher.send_signal(number)
    assert launcher.wait() == 128 + number
    assert time.monotonic() - began < 5, "it does not wait for the compiler"
    assert f"was ended by {number.name}; the others are ended" in said.read_text()
    assert "error" not in said.read_text(), "nobody blames another"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_two_four_two_and_one_process_end_like_two_undisturbed(
    start: Start, whole: Path, tmp_path: Path
) -> None:
    broken, said = tmp_path / "broken", tmp_path / "broken.out"
    for processes, saved in ((2, EVERY), (4, 2 * EVERY)):  # one of them dies
        launcher = start(broken, processes)
        wait_for(launcher, said, f"step {saved} | checkpoint saved")
        os.kill(children(launcher)[1], signal.SIGKILL)
        assert launcher.wait() == 137
        assert f"launch: process 1 of {processes} " in said.read_text()

    resumed, damaged = checkpoint.saved_steps(broken)[-2:]
    (broken / checkpoint.FOLDER / str(damaged) / "leaves" / "metadata").write_text("{}")
    launcher = start(broken, 2)  # one of two hosts is about to be taken away
    while not resumed < rows(broken)[-1]["step"] < damaged:  # of the run that was killed, or of this one
        assert launcher.poll() is None, said.read_text()
        time.sleep(0.01)
    assert f"goes on after step {resumed}" in said.read_text()
    assert f"It was moved to {broken}/damaged/{damaged}" in said.read_text()
    told_first, told_later = children(launcher)[::-1]
    os.kill(told_first, signal.SIGTERM)
    wait_for(launcher, said, "all processes stop after step")
    while launcher.poll() is None:  # hosts of one pool are told seconds apart
        with contextlib.suppress(ProcessLookupError):
            os.kill(told_later, signal.SIGTERM)
        time.sleep(0.005)
    assert launcher.wait() == 143, said.read_text()
    assert "was ended by SIGTERM" not in said.read_text()
    stopped = checkpoint.latest_step(broken) or 0
    assert 0 < resumed < rows(broken)[-1]["step"] == stopped < STEPS, (
        "all stopped after this step and saved it"
    )

    assert start(broken, 1).wait() == 0, said.read_text()
    assert rows(broken) == rows(whole), f"killed after {resumed}, stopped at {stopped}"
    assert [row["step"] for row in rows(broken)] == list(range(1, STEPS + 1))
    assert leaves(broken) == leaves(whole), f"killed after {resumed}, stopped at {stopped}"
    assert not [path.name for path in broken.iterdir() if path.name.startswith(".")], "nothing is left behind"


def test_a_run_goes_on_with_other_processes_and_another_mesh(start: Start, tmp_path: Path) -> None:
    """From the same batches: losses are those of the undisturbed run up to rounding, and so is the FID.

    That is of parameters which are cut over processes, and of whole ones.
    """
    inception, real = tmp_path / "random.safetensors", tmp_path / "real.npz"
    write_random_inception(inception)
    np.savez(real, mu=np.zeros(POOL), sigma=np.eye(POOL))
    fields = {"train.steps": 20, "train.checkpoint_every": 7, "train.keep_last": 3, "train.eval_every": 0}
    fid = {"every": 20, "num": 6, "reference": real, "inception": inception, "sampler": "euler", "steps": 1}
    scored = fields | {f"fid.{name}": value for name, value in (fid | {"batch_size": 2}).items()}
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    launcher = start(whole, 2, scored | {"mesh.data": 1, "mesh.fsdp": 4}, flags=["--profile=3:4"])
    assert launcher.wait() == 0, said_by(whole)
    traces = [path.relative_to(whole).parts[:2] for path in (whole / "profile").rglob("*.xplane.pb")]
    assert sorted(traces) == [("profile", "process_0"), ("profile", "process_1")]
    shutil.copytree(whole, moved)

    legs = (
        (7, fields | {"mesh.data": 2, "mesh.fsdp": 1, "mesh.context": 2}, DEVICES),
        (14, scored | {"mesh.data": 1, "mesh.fsdp": 1}, 1),
    )
    for last, changes, devices in legs:
        for step in checkpoint.saved_steps(moved):
            if step > last:
                shutil.rmtree(moved / checkpoint.FOLDER / str(step))
        assert start(moved, 1, changes, devices).wait() == 0, said_by(moved)
        assert f"goes on after step {last}" in said_by(moved)
        losses = [[row["loss"] for row in rows(workdir)] for workdir in (moved, whole)]
        assert len(losses[0]) == 20
        np.testing.assert_allclose(*losses, rtol=2e-5)
    found, expected = (rows(workdir)[-1]["fid_6"] for workdir in (moved, whole))
    assert found == pytest.approx(expected, rel=1e-3)


def said_by(workdir: Path) -> str:
    """What the processes of a run have printed."""
    return workdir.with_suffix(".out").read_text()


def test_the_host_that_holds_up_the_others_is_named(whole: Path) -> None:
    """The others wait for it within the step, which a CPU computes as it is called."""
    found = metrics.read_rows(whole)
    assert found[2 * EVERY]["time_slow_hosts"] == 2, "one in each of the first two comparisons"
    assert re.findall(r"process (\d) is slow", (whole / "log.txt").read_text())[:2] == ["1", "1"]
    time_of = {name: sum(row[f"time_{name}"] for row in found[1 : 2 * EVERY]) for name in ("step", "host")}
    assert 0 < time_of["host"] < 0.2 * time_of["step"], "of process 0, which waits for process 1"


def test_where_all_stand_still_each_says_so(whole: Path) -> None:
    said, log = whole.with_suffix(".out").read_text(), (whole / "log.txt").read_text()
    for number in range(2):
        file = whole / "stuck" / f"process_{number}.txt"
        words = rf"warning: process {number} of 2 on \S+: nothing has moved for \d s in step \d+; .* {file}\n"
        assert re.search(rf"^\[{number}\] {words}", said, re.MULTILINE)
        assert re.search(words, log)
        assert "in step" in file.read_text()


def test_paths_are_read_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = common.base()
    config.data.dir, config.init_from = "~/data/digits", "runs/other"
    expand_paths(config)
    assert (config.data.dir, config.init_from) == ("/home/somebody/data/digits", "runs/other")
    assert argument_path("~/set") == Path("/home/somebody/set")
    with pytest.raises(argparse.ArgumentTypeError, match=r"gs://bucket/set is no folder .* mount the bucket"):
        argument_path("gs://bucket/set")
    with pytest.raises(InputError, match=r"--workdir=gs://bucket/run is no folder .* mount the bucket"):
        local_path("--workdir", "gs://bucket/run")
