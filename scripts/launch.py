"""Starts several processes of one command on this machine, as one run, and starts them again when one dies.

    python scripts/launch.py --processes=4 -- train.py --config=configs/digits.py
    python scripts/launch.py --restarts=10 -- train.py --config=configs/digits.py      one process, restarted

Each process is told where the first one is, how many there are and which it is (--coordinator, --processes,
--process), and its lines are shown with its number in front. When one dies the others, which wait for it,
are ended, and one line says which it was and how it ended; the exit code is its own (128 + N after signal N).

With --restarts=N all are started again, at most N times, after any end but the good one (0), wrong input (2),
losses that stay wrong (3), Ctrl-C, or a signal to this launcher. The N are counted anew whenever a start has
saved a newer checkpoint than all before: a run that gets on may be stopped any number of times. SIGTERM and
Ctrl-C are handed on, so that the run saves and stops (exit code 143 or 130); a Ctrl-C after that ends all at
once, a SIGTERM changes nothing.
An error that several processes print in the same words is shown once.

Needs nothing but Python. On CPUs --devices=N gives each process N virtual devices.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

FINAL = (0, 2, 3, 130)  # after these the same command would end the same way, or a person chose so
SAVED = re.compile(r"step ([\d,]+) \| checkpoint saved")  # what train.py prints
LOST = 75  # exit code of a process that says that another is gone
GRACE = 5.0  # seconds that the others have to say what they see when one dies
LEAVING = 60.0  # seconds that they have where one has stopped in good order: all have saved by then


def main(argv: Sequence[str]) -> int:
    """Runs the command, again where that helps; returns its exit code."""
    arguments = parse(argv)
    stop, restarts, newest = Stop(), 0, 0
    while True:
        code, saved = run_once(arguments, stop)
        if saved > newest:
            restarts, newest = 0, saved
        if code in FINAL or stop.number is not None or restarts == arguments.restarts:
            return code
        restarts += 1
        say(f"starting again ({restarts} of {arguments.restarts})")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--processes", type=int, default=1, help="how many; 1 by default")
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        help="how often a run that dies may be started again without a save",
    )
    parser.add_argument("--devices", type=int, help="virtual CPU devices of each process")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- SCRIPT and its flags")
    arguments = parser.parse_args(argv)
    arguments.command = arguments.command[arguments.command[:1] == ["--"] :]
    if arguments.processes < 1 or arguments.restarts < 0 or (arguments.devices or 1) < 1:
        parser.error("--processes and --devices must be at least 1, --restarts at least 0")
    if not arguments.command:
        parser.error("which command? End with -- train.py --config=configs/digits.py")
    return arguments


class Stop:
    """A signal to this launcher.

    Attributes:
        number: of the first, or None.
        at_once: whether a Ctrl-C came after it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.at_once = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        self.at_once |= self.number is not None and number == signal.SIGINT
        self.number = self.number or number


def run_once(arguments: argparse.Namespace, stop: Stop) -> tuple[int, int]:
    """Starts the processes and waits until all have ended.

    Returns:
        The exit code of the first that failed, and the newest step that was saved, 0 for none.
    """
    processes, shown = start(arguments), Shown(arguments.processes > 1)
    readers = [
        threading.Thread(target=shown.follow, args=(process.stdout, number))
        for number, process in enumerate(processes)
    ]
    for reader in readers:
        reader.start()
    code, deadline, handed_on = 0, None, False
    while any(process.poll() is None for process in processes):
        if stop.number is not None and not handed_on:
            handed_on = True
            send(processes, stop.number)
        if stop.at_once:
            send(processes, signal.SIGKILL)
        if deadline is None and (failed := first_failed(processes)):
            code = told(processes, failed)
            deadline = time.monotonic() + (LEAVING if failed.returncode in (130, 143) else GRACE)
        if deadline is not None and time.monotonic() > deadline:
            send(processes, signal.SIGKILL)
        time.sleep(0.05)
    for reader in readers:
        reader.join()
    if deadline is None and (failed := first_failed(processes)):
        code = told(processes, failed)
    return code, shown.saved


def first_failed(processes: Sequence[subprocess.Popen]) -> subprocess.Popen | None:
    """Of those that have ended badly by now, the one whose end the others may only have met."""
    met = (LOST, -signal.SIGABRT)  # JAX aborts where the first process is gone
    if any(process.poll() for process in processes):
        time.sleep(0.3)  # the others may be seen to end before it
    failed = [process for process in processes if process.poll()]
    return min(failed, key=lambda process: process.returncode in met, default=None)


def start(arguments: argparse.Namespace) -> list[subprocess.Popen]:
    """The processes, each in a session of its own: a Ctrl-C reaches them through this launcher alone."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if arguments.devices:
        flags = (
            f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={arguments.devices}"
        )
        environment |= {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments.command]
    several = arguments.processes > 1 or (arguments.devices or 1) > 1
    if several:  # also one process with several devices: it then sums over them as several processes do
        command += [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={arguments.processes}"]
    return [
        subprocess.Popen(
            command + [f"--process={number}"] * several,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        for number in range(arguments.processes)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Shown:
    """Prints what processes print, each line with the number of its process in front where there are several.

    Args:
        several: processes.

    Attributes:
        saved: the newest step whose checkpoint they said to be saved; 0 for none.
    """

    def __init__(self, several: bool):
        self.saved = 0
        self._several, self._errors, self._lock = several, set(), threading.Lock()

    def follow(self, lines: IO[str], number: int) -> None:
        """Prints the lines of one process; from its error on, those that no other process has printed."""
        failed = False
        for line in lines:
            failed |= line.startswith("error: ")
            with self._lock:
                if found := SAVED.search(line):
                    self.saved = max(self.saved, int(found[1].replace(",", "")))
                words = re.sub(r"^error: process \d+ of \d+ on \S+: ", "error: ", line)
                if failed and words in self._errors:
                    continue
                self._errors |= {words} if failed else set()
                print(f"[{number}] {line}" if self._several else line, end="", flush=True)


def send(processes: Sequence[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def exit_code(process: subprocess.Popen) -> int:
    """As a shell reports it."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def told(processes: Sequence[subprocess.Popen], ended: subprocess.Popen) -> int:
    """Says which process ended first, and how; returns its exit code."""
    code, number, count = ended.returncode, processes.index(ended), len(processes)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    rest = "; the others are ended" if count > 1 else ""
    say(f"process {number} of {count} (pid {ended.pid}) {how}{rest}")
    return exit_code(ended)


def say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
