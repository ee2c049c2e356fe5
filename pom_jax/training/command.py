"""The command line of train.py: whatever is wrong with it is said in one message."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import cast

from absl import flags
from ml_collections import ConfigDict

from pom_jax.errors import InputError


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses absl flags, of which `config` is a config file.

    Raises:
        InputError: no such config file, whatever the config file itself raises, an override of a field that
        does not
            exist (with the nearest one that does) or of another type, an unknown flag.
    """
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        raise _unknown_field(argv) or error from error
    except (flags.Error, InputError) as error:
        raise InputError(_cause(error)) from error
    config = flags.FLAGS["config"].value
    if config is not None and not isinstance(config, ConfigDict):
        raise InputError(f"--config={_config_path(argv)}: there is no such file; the recipes are in configs/")
    return rest


def _unknown_field(argv: Sequence[str]) -> InputError | None:
    config = cast(ConfigDict, flags.FLAGS["config"].parser.parse(_config_path(argv)))
    known = list(_names(config))
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in known:
            near = difflib.get_close_matches(match[1], known, n=1, cutoff=0.5)
            hint = f"did you mean --config.{near[0]}?" if near else "configs/common.py lists all fields"
            return InputError(f"--config.{match[1]}: there is no such field; {hint}")
    return None


def _cause(error: BaseException) -> str:
    """The message of what a config file raised, dug out of the parser's wrapping, or the error's own."""
    message, cause = str(error), error.__context__
    while cause is not None:
        if isinstance(cause, InputError):
            message = str(cause)
        cause = cause.__context__
    return message


def _config_path(argv: Sequence[str]) -> str:
    """The value of --config=VALUE or --config VALUE."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.match(r"--?config(?:=(.*))?$", argument):
            return following if match[1] is None else match[1]
    return ""


def _names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield prefix + name
