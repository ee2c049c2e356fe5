"""The fields of a record, and the checks of what is stored in them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pom_jax.data.words import check_words
from pom_jax.errors import InputError

DTYPES = ("uint8", "int8", "int32", "float16", "float32")
NOT_FINITE = "NaN or infinite values"


@dataclass(frozen=True)
class Field:
    """One field of a record.

    Attributes:
        dtype: by name, see DTYPES.
        shape: without a batch axis.
        scale: what a stored number counts: its value is `stored * scale`.
    """

    dtype: str
    shape: tuple[int, ...]
    scale: float = 1.0

    @property
    def bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    @property
    def stored(self) -> np.dtype:
        """The dtype as it lies in the file, little-endian on every machine."""
        return np.dtype(self.dtype).newbyteorder("<")

    def to_json(self) -> dict[str, Any]:
        # Without a scale of 1, so that sets from before there was one keep their digest.
        return {name: value for name, value in asdict(self).items() if (name, value) != ("scale", 1.0)}


def check_fields(fields: Mapping[str, Field], words: Sequence[str] = ()) -> None:
    """Raises InputError unless `fields` are a set's: mean, optional std alike, and label or text or both."""
    for name, field in fields.items():
        if field.dtype not in DTYPES:
            raise InputError(f"field {name} has dtype {field.dtype}; a record can hold {', '.join(DTYPES)}")
        if not (math.isfinite(field.scale) and field.scale > 0):
            raise InputError(f"field {name} has scale {field.scale}; it must be finite and above 0")
    mean, std, label = fields.get("mean"), fields.get("std"), fields.get("label")
    if mean is None or len(mean.shape) not in (4, 5):
        raise InputError(
            "field mean [views, height, width, channels], or of clips [views, frames, height, width, "
            f"channels], is needed, found {mean}"
        )
    if std is not None and std.shape != mean.shape:
        raise InputError(f"field std has shape {std.shape}, field mean {mean.shape}; they must be equal")
    if label is None and "text" not in fields:
        raise InputError(f"a field label or text is needed beside mean, found {', '.join(fields)}")
    if label not in (None, Field("int32", ())):
        raise InputError(f"field label must be an int32 scalar, found {label}")
    _check_text(fields.get("text"), fields.get("text_mask"), words)


def _check_text(text: Field | None, mask: Field | None, words: Sequence[str]) -> None:
    if text is None:
        if mask is not None or words:
            raise InputError(f"there are {'words' if words else 'masks'}, but there is no field text")
        return
    if (text.dtype, len(text.shape)) == ("int32", 1):
        if mask is not None:
            raise InputError("field text holds words, of which 0 is masked: there can be no text_mask")
        check_words(words)
    elif (text.dtype, len(text.shape)) == ("float16", 2):
        if mask != Field("uint8", text.shape[:1]):
            raise InputError(f"field text_mask must be uint8 {text.shape[:1]}, as field text, found {mask}")
        if words:
            raise InputError(f"field text holds embeddings {text.shape}: there can be no words")
    else:
        raise InputError(
            f"field text must be int32 [words of a caption] or float16 [tokens, width], found {text}"
        )


def finite(values: np.ndarray) -> np.ndarray:
    """Of records [n, *shape], n at least 1: whether all numbers of each are finite, bool [n]."""
    rows = values.reshape(len(values), -1)
    if values.dtype == np.float16:
        # Quicker than isfinite: infinities and NaN are the largest of the positive and of the negative.
        bits = rows.view(np.uint16)
        return (bits.view(np.int16).max(axis=1) < 0x7C00) & (bits.max(axis=1) < 0xFC00)
    good = np.ones(len(rows), bool)
    if values.dtype.kind == "f":
        good &= np.isfinite(rows).all(axis=1)
    return good


def find_bad_record(name: str, values: np.ndarray, classes: int, words: int = 0) -> tuple[int, str] | None:
    """The first record [n, *shape] of a field whose values cannot be used, and what is wrong with it.

    Labels must be among the classes, numbers of words among the words, masks 0 or 1, floating-point values
    finite.
    """
    if not values.size:
        return None
    rows = values.reshape(len(values), -1)
    what, limit = NOT_FINITE, 0
    if values.dtype.kind == "f":
        good = finite(values)
    elif name in ("label", "text", "text_mask"):
        what, limit = {"label": ("label", classes), "text": ("word", words), "text_mask": ("mask", 2)}[name]
        good = ((rows >= 0) & (rows < limit)).all(axis=1)
    else:
        return None
    if good.all():
        return None
    bad = int(np.argmin(good))
    if limit:
        wrong = rows[bad][(rows[bad] < 0) | (rows[bad] >= limit)][0]
        what = f"{what} {wrong} is not from 0 to {limit - 1}"
    return bad, what
