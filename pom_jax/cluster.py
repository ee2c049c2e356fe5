"""Several processes that work as one: found by JAX in what a scheduler says, or told by flags.

Nothing here stands in for JAX's own runtime: this starts it, says what was found, and makes an error of one
process known to all, so that none waits for one that is gone.
"""

import contextlib
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from pom_jax import remote
from pom_jax.errors import REFUSALS, InputError, explain, first_line

PATIENCE = 300  # seconds that processes wait for each other at the start
HEARTBEAT = 240  # seconds without a sign of life after which, or after half, JAX aborts all: see heartbeat
LOST = 75  # exit code where another process is gone: "try again" among those of sysexits.h
LONGEST = 1024  # bytes of an error that are told to the others

# Started by a launcher whose cluster JAX does not recognise, each process would believe to be alone.
RANKS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")

# Said by gloo, NCCL and JAX's coordination service, with types of error that they share with much else.
GONE = re.compile(
    r"Gloo|by peer|oordination service|heartbeat|barrier|Barrier|GetKeyValue|remote process|network error|"
    r"^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED):"
)

Result = TypeVar("Result")


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    patience: int = PATIENCE,
) -> str | None:
    """Joins the other processes, before any other use of JAX.

    With no arguments JAX looks for SLURM, Open MPI, Kubernetes and TPU pods; where it finds none, or is in
    use already, nothing happens and nothing waits. `processes=1` alone says not to look.

    Args:
        coordinator: HOST:PORT of the first process, which all others can reach.
        processes, process: how many there are and the number of this one, from 0.
        patience: seconds to wait for the others.

    Returns:
        A line that says which process of how many this is, with how many of all devices; None if it is alone.

    Raises:
        InputError: flags that do not go together, a cluster that cannot be joined.
    """
    jax.config.update("jax_enable_preemption_service", False)  # see heed_preemption
    if processes == 1 and coordinator is None:
        return None
    _check_flags(coordinator, processes, process)
    if coordinator is not None:
        if process == 0:
            _check_free(coordinator)
        else:
            _reach(coordinator, patience)
    # JAX would end the process with a stack of its own; where nobody is to be waited for this never fires.
    alarm = threading.Timer(patience, _give_up, [coordinator, processes, patience])
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=patience + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise _cannot_join(error) from error
        _check_alone()  # JAX found no cluster
        return None
    except (RuntimeError, OSError, KeyError) as error:
        if coordinator is None and "must be called before" in str(error):
            return None  # called from a program that uses JAX already, and so is alone
        raise _cannot_join(error) from error
    finally:
        alarm.cancel()
    if processes not in (None, jax.process_count()):
        raise InputError(f"--processes={processes}, but process 0 was told {jax.process_count()}")
    return (
        f"process {jax.process_index()} of {jax.process_count()} (from 0) on {socket.gethostname()}: "
        f"{jax.local_device_count()} of {jax.device_count()} devices"
    )


def heed_preemption() -> None:
    """From here on SIGTERM is JAX's notice of preemption, to all processes; before, it ends this one at once.

    JAX itself would heed it from the start, when nobody looks for a notice yet and nothing is to be saved.
    """
    jax.config.update("jax_enable_preemption_service", True)
    if distributed.global_state.preemption_sync_manager is None:
        distributed.global_state.initialize_preemption_sync_manager()


def _check_flags(coordinator: str | None, processes: int | None, process: int | None) -> None:
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise InputError(
            f"{', '.join(missing)} missing: --coordinator=HOST:PORT --processes=N --process=I go together "
            "(--processes=1 alone: no others)"
        )
    if not re.fullmatch(r"[^\s/]+:\d{1,5}", str(coordinator)):
        raise InputError(f"--coordinator={coordinator} must be HOST:PORT, such as node1:8476")
    if processes is None or processes < 1:
        raise InputError(f"--processes={processes} must be at least 1")
    if process is None or not 0 <= process < processes:
        raise InputError(f"--process={process} must be from 0 to {processes - 1}, as --processes={processes}")


def _reach(coordinator: str, patience: int) -> None:
    """Waits until the first process listens; JAX would end this one without a word that explains it."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline or isinstance(error, OverflowError):
                raise InputError(
                    f"--coordinator={coordinator}: nobody answers there for {patience} s ({error}); is "
                    "process 0 running on that host, and may this one reach its port?"
                ) from error
        time.sleep(0.2)


def _check_free(coordinator: str) -> None:
    """The first process listens at the port; JAX crashes where it cannot."""
    port = int(coordinator.rpartition(":")[2])
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as after a restart
            probe.bind(("", port))
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--coordinator={coordinator}: process 0 cannot listen at port {port} ({error}); choose another"
        ) from error


def _give_up(coordinator: str | None, processes: int | None, patience: int) -> None:
    where = "" if coordinator is None else f" at {coordinator}"
    count = "the processes" if processes is None else f"the {processes} processes"
    error = InputError(
        f"not all of {count} met{where} within {patience} s: are all of them running, with the same "
        "--coordinator and --processes, and each with its own --process?"
    )
    os._exit(explain(error))


def _check_alone() -> None:
    for name in RANKS:
        if os.environ.get(name, "1") not in ("1", ""):
            raise InputError(
                f"{name}={os.environ[name]}: this is one of several processes, but JAX does not know their "
                "launcher; give each --coordinator=HOST:PORT --processes=N --process=I, or --processes=1 if "
                "they are not to work together"
            )


def _cannot_join(error: Exception) -> InputError:
    return InputError(
        f"the other processes cannot be joined: {first_line(error)}; are all of them running, with the same "
        "--coordinator and --processes and each with its own --process? --processes=1 starts this one alone"
    )


def agree(action: Callable[[], Result], kind: type[Exception]) -> Result:
    """What `action` returns here; an error of this kind on one process is raised on all of them.

    Called by all processes; the error says which of them it comes from, and has the same exit code.
    """
    result, own = None, None
    try:
        result = action()
    except kind as error:
        if jax.process_count() == 1:
            raise
        own = error
    if jax.process_count() > 1:
        said = "" if own is None else f"{getattr(own, 'exit_code', '')}:{str(own) or type(own).__name__}"
        for process, text in enumerate(share(said)):
            if text:
                code, _, words = text.partition(":")
                raise own or _of_another(kind(f"{words} (process {process})"), code)
    return result  # type: ignore[return-value]


def _of_another(error: Exception, code: str) -> Exception:
    if code and isinstance(error, InputError):
        error.exit_code = int(code)
    return error


def first_does(action: Callable[[], object]) -> None:
    """Runs `action` on the first process while the others wait; its InputError is raised on all of them."""
    agree(lambda: action() if jax.process_index() == 0 else None, InputError)


def share(text: str) -> list[str]:
    """The texts that all processes give, in their order; cut to a kilobyte each."""
    padded = np.zeros(LONGEST, np.uint8)
    encoded = np.frombuffer(text.encode()[:LONGEST], np.uint8)
    padded[: len(encoded)] = encoded
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, LONGEST)
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]


def roll_call() -> str:
    """Which process runs on which host; called by all."""
    hosts = share(socket.gethostname())
    return "processes: " + ", ".join(f"{process} on {host}" for process, host in enumerate(hosts))


def on_this_host() -> int:
    """How many of the processes run on the host of this one; called by all."""
    name = socket.gethostname()
    return share(name).count(name) if jax.process_count() > 1 else 1


def is_loss(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, says that another process is gone or does not answer."""
    while error is not None and jax.process_count() > 1:
        if isinstance(error, InputError) or remote.trouble(error):
            return False  # a bucket's errors have the same words
        if tells_of_loss(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def tells_of_loss(error: object) -> bool:
    """Whether this is what JAX says of a lost process, and not of memory that runs out, say."""
    return GONE.search(first_line(error)) is not None


@contextlib.contextmanager
def one_for_all(log: Path | None = None, alike: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Within, an error of one process of several ends it at once, with one line and an exit code.

    Whoever unwinds in good order waits for the others, and they for this one. The launcher, or JAX once it
    misses the heartbeat, ends them. The exit code is that of an InputError or a disk that refuses, LOST where
    another process is gone, else 1. A process that is alone is left to its callers.

    Args:
        log: file to which the line is added; whoever looks for the dead host finds it there.
        alike: errors that all processes meet at the same place, and may unwind.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, alike):
            raise
        lost = is_loss(error)
        refused = isinstance(error, OSError) and error.errno in REFUSALS
        if not (lost or refused or isinstance(error, InputError)):
            traceback.print_exc()
        words = "another process is gone: " if lost else ""
        tell(f"error: {name()}: {words}{first_line(error) if lost else error}", log)
        sys.stdout.flush()
        os._exit(LOST if lost else getattr(error, "exit_code", InputError.exit_code if refused else 1))


def tell(line: str, log: Path | None = None) -> None:
    """Prints a line of any process on stderr, and adds it, with the time of day, to the file of the run."""
    print(line, file=sys.stderr, flush=True)
    if log is not None:
        with contextlib.suppress(OSError), log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def name() -> str:
    """Which process of how many this is, and its host."""
    return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"
