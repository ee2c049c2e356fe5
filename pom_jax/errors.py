"""Mistakes in what was asked, explained in words, and how the commands print them."""

import difflib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from absl import app, flags, logging


class InputError(ValueError):
    """A field, file or array that cannot be used; the message names it, the values, and the way out."""


def choose(field: str, name: Any, options: Collection[str]) -> Any:
    """The entry `name` of a mapping, or the name itself of a list; an `InputError` suggests a known one."""
    if not isinstance(name, str) or name not in options:
        near = difflib.get_close_matches(str(name), options, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{field} = {name!r} is unknown.{hint} There are: {', '.join(options)}.")
    return options[name] if isinstance(options, Mapping) else name


def run_command(
    main: Callable[[Sequence[str]], int | None],
    parse: Callable[[list[str]], list[str]] = app.parse_flags_with_usage,
) -> None:
    """Runs an absl command; an `InputError` ends it with one message and exit code 2, without a traceback."""

    def parse_quietly(argv: list[str]) -> list[str]:
        rest = parse(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            logging.set_verbosity(logging.WARNING)  # absl would turn on the libraries' own chatter
        return rest

    try:
        app.run(main, flags_parser=parse_quietly)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
