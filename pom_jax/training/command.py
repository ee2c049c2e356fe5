"""The command line of train.py: whatever is wrong with it is said in one message."""

import difflib
import os
import re
import traceback
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict

from pom_jax.errors import InputError


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses absl flags, of which `config` is a config file; returns what is no flag.

    Raises:
        InputError: no config file or one that cannot be used, an override of a field that does not exist
            (with the nearest one that does) or of another type, an unknown flag.
    """
    paths = _config_paths(argv)
    if len(paths) > 1:
        raise InputError(f"--config is given {len(paths)} times: {', '.join(paths)}; choose one recipe")
    config = _read_recipe(paths[0]) if paths else ConfigDict()
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        raise _unknown_field(argv, config) or error from error
    except (flags.Error, InputError) as error:
        if not paths:
            raise InputError(
                "which recipe? Give --config=configs/digits.py (configs/ has the others)"
            ) from error
        raise InputError(f"{error}; python {argv[0]} --help lists the flags") from error


def _read_recipe(path: str) -> ConfigDict:
    """What the parser of --config will find, read once before it so that its errors can be told apart."""
    try:
        config = flags.FLAGS["config"].parser.parse(path)
    except Exception as error:  # the recipe is a program, and may fail in any way
        if said := _said(error):
            raise said from error
        file = path.split(":")[0]
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{file}, line {line}" if line else file
        reason = re.sub(r'Other fields present: "{.*}"', "", str(error)).replace("\\n", "")
        message = f"--config={path} is not a recipe: {where}: {type(error).__name__}: {reason}"
        raise InputError(message) from error
    if not os.path.isfile(path.split(":")[0]):
        raise InputError(f"--config={path}: there is no such file; the recipes are in configs/")
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config={path} is not a recipe: its get_config returns {config!r}")
    return config


def _said(error: BaseException | None) -> InputError | None:
    """The InputError that a recipe raised, as it was before the parser wrapped it in a traceback."""
    innermost = None
    while error is not None:
        innermost, error = error if isinstance(error, InputError) else innermost, error.__context__
    return innermost


def _unknown_field(argv: Sequence[str], config: ConfigDict) -> InputError | None:
    known = list(_names(config))
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in known:
            return InputError(f"--config.{match[1]}: there is no such field; {_hint(match[1], known)}")
    return None


def _hint(wrong: str, known: Sequence[str]) -> str:
    """The fields that may be meant: of that name elsewhere or like it in its section; else the section."""
    section, _, last = wrong.rpartition(".")
    fields = [name for name in known if name.rpartition(".")[0] == section]
    names = [name.rpartition(".")[2] for name in fields]
    meant = [name for name in known if name.rpartition(".")[2] == last]
    meant = meant or [field for field, name in zip(fields, names, strict=True) if _abbreviates(last, name)]
    meant = meant or [fields[names.index(n)] for n in difflib.get_close_matches(last, names, n=1, cutoff=0.7)]
    meant = meant or difflib.get_close_matches(wrong, known, n=1, cutoff=0.8)
    if meant:
        return f"did you mean {' or '.join(f'--config.{name}' for name in meant)}?"
    if section and names:
        return f"config.{section} has {', '.join(names)}"
    return "configs/common.py lists all fields"


def _abbreviates(short: str, name: str) -> bool:
    """Whether a name begins like that, or its words do: `lr`, `learn` and `learn_rate` are learning_rate."""
    words, parts = name.split("_"), short.split("_")
    initials = "".join(word[0] for word in words)
    each = len(parts) == len(words) and all(map(str.startswith, words, parts))
    return name.startswith(short) or short == initials or each


def _config_paths(argv: Sequence[str]) -> list[str]:
    """The values of --config=VALUE or --config VALUE."""
    return [
        following if match[1] is None else match[1]
        for argument, following in zip(argv, [*argv[1:], ""], strict=True)
        if (match := re.match(r"--?config(?:=(.*))?$", argument))
    ]


def _names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield prefix + name
