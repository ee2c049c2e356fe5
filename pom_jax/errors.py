"""Mistakes in what was asked, explained in words, and how the commands print them."""

import difflib
import errno
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

# What a disk says that is full, read-only or not ours, or has a file where a folder should be or the other
# way round: nothing that a traceback would explain.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
REFUSALS += (errno.EISDIR, errno.ENOTDIR, errno.EEXIST)

# What numpy raises for an .npz that is cut, damaged, another kind of file, or without the arrays asked for.
BROKEN_NPZ = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


class InputError(ValueError):
    """A field, file or array that cannot be used; the message names it, the values, and the way out.

    Attributes:
        exit_code: of a command that ends by it.
    """

    exit_code = 2


class TroubledDisk(InputError):
    """A file cannot be read or written, whatever it holds. It may be soon: a restart loop tries again."""

    exit_code = 74  # EX_IOERR of sysexits.h


def choose(field: str, name: Any, options: Collection[str]) -> Any:
    """The entry `name` of a mapping, or the name itself of a list; an `InputError` suggests a known one."""
    if not isinstance(name, str) or name not in options:
        near = difflib.get_close_matches(str(name), options, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{field} = {name!r} is unknown.{hint} There are: {', '.join(options)}.")
    return options[name] if isinstance(options, Mapping) else name


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses absl flags; returns the arguments that are none.

    Raises:
        InputError: an unknown flag, or a value of another type.
    """
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise InputError(f"{error}; python {argv[0]} --help lists the flags") from error


def run_command(
    main: Callable[[Sequence[str]], int | None], parse: Callable[[list[str]], list[str]] = parse_flags
) -> None:
    """Runs an absl command with one message instead of a traceback where the program is not at fault.

    An `InputError` ends it with its exit code, a disk that refuses with 2, Ctrl-C with 130.
    """

    def parse_quietly(argv: list[str]) -> list[str]:
        rest = parse(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            logging.set_verbosity(logging.WARNING)  # absl would turn on the libraries' own chatter
        return rest

    try:
        app.run(main, flags_parser=parse_quietly)
    except InputError as error:
        sys.exit(explain(error))
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        sys.exit(explain(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)  # the usual way out crashes while a thread of XLA still compiles


def first_line(error: object) -> str:
    """The first line of what an error of a library says, at most 300 characters of it."""
    lines = str(error).strip().splitlines() or [repr(error)]
    return lines[0].strip()[:300]


def explain(error: Exception) -> int:
    """Prints an error in one message; returns its exit code, 2 for most."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    return getattr(error, "exit_code", InputError.exit_code)
