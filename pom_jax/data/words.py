"""Captions as numbers of words, for data sets whose few words a model learns itself."""

import difflib
from collections.abc import Sequence

import numpy as np

from pom_jax.errors import InputError

PADDING = ""  # word 0 of every table: no word


def encode(prompt: str, words: Sequence[str], length: int) -> np.ndarray:
    """The word numbers of a prompt, filled up with 0.

    Args:
        prompt: words between spaces; capitals do not matter.
        words: the table, whose first entry is "" (`Manifest.words`).
        length: M, how many words a caption can have.

    Returns:
        [M] int32.

    Raises:
        InputError: no word, more than M, or one that the table lacks.
    """
    found = prompt.lower().split()
    if not found:
        raise InputError(f"the prompt is empty; this model knows the words {', '.join(words[1:])}")
    if len(found) > length:
        raise InputError(f"prompt {prompt!r} has {len(found)} words, this model reads at most {length}")
    for word in found:
        if word not in words:
            near = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise InputError(
                f"prompt {prompt!r}: the word {word!r} is unknown.{hint} There are: {', '.join(words[1:])}."
            )
    numbers = np.zeros(length, np.int32)
    numbers[: len(found)] = [words.index(word) for word in found]
    return numbers


def decode(numbers: np.ndarray, words: Sequence[str]) -> str:
    """The caption of word numbers [M]."""
    return " ".join(words[number] for number in numbers if number)


def check_words(words: Sequence[str]) -> None:
    """Raises InputError unless `words` is a table: "" first, then different words in small letters."""
    if not words or words[0] != PADDING:
        raise InputError(f'the first word must be "" (no word), found {list(words[:1])}')
    for number, word in enumerate(words[1:], start=1):
        if not isinstance(word, str) or word.lower().split() != [word]:
            raise InputError(f"word {number} is {word!r}; a word is small letters without spaces")
    if len(set(words)) < len(words):
        twice = next(word for number, word in enumerate(words) if word in words[:number])
        raise InputError(f"word {twice!r} stands twice in the table of words")
