"""Says what each process is doing when a run stands still."""

import faulthandler
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import jax

FOLDER = "stuck"


class Watchdog:
    """Within a `with` block, looks whether there is progress; if not, writes what every thread is at.

    The stacks go to WORKDIR/stuck/process_I.txt, once each time that nothing has moved for so long, so that
    after a hang of many processes there is a file of each. The run itself is left alone. A process that is
    stopped from outside says nothing: among those of the others its file is missing.

    Args:
        workdir: of the run.
        seconds: without progress until it speaks; 0 = never.
        say: takes the warning for people, of this process.
    """

    def __init__(self, workdir: Path, seconds: float, say: Callable[[str], None]):
        self._file = workdir / FOLDER / f"process_{jax.process_index()}.txt"
        self._seconds, self._say = seconds, say
        self._doing, self._since = "starting", time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def progress(self, doing: str) -> None:
        """Something was finished, and this is done next: "step 12"."""
        self._doing, self._since = doing, time.monotonic()

    def __enter__(self) -> "Watchdog":
        self._since = time.monotonic()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        told = self._since
        while not self._end.wait(min(1.0, self._seconds / 4)):
            last = max(told, self._since)
            if time.monotonic() - last >= self._seconds:
                self._tell()
                told = time.monotonic()

    def _tell(self) -> None:
        waited = f"nothing has moved for {time.monotonic() - self._since:,.0f} s"
        title = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {waited} in {self._doing}"
        try:
            self._file.parent.mkdir(exist_ok=True)
            with self._file.open("a") as file:
                file.write(f"{title}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
        except OSError as error:
            self._say(f"{waited} in {self._doing}; {self._file}: {error.strerror}")
            return
        self._say(f"{waited} in {self._doing}; what each thread does is in {self._file}")
