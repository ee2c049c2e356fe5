"""Mistakes in what was asked, explained in words, and how the commands print them."""

import sys
from collections.abc import Callable, Sequence

from absl import app


class InputError(ValueError):
    """A field, file or array that cannot be used; the message names it, the values, and the way out."""


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs an absl command; an `InputError` ends it with one message and exit code 2 instead of a traceback."""

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            return main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 2

    app.run(guarded)
