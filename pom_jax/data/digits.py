"""scikit-learn's 1,797 real handwritten digits, 8 x 8 pixels of 0 to 16: a data set that needs no download.

They are the test part of the UCI "Optical Recognition of Handwritten Digits" set (E. Alpaydin, C. Kaynak).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pom_jax.data.manifest import Field, Manifest
from pom_jax.data.writer import Writer

NAME = "digits"
TEST_IMAGES = 360


class Digits(NamedTuple):
    """Both splits: images [N, 8, 8, 1] uint8 of 0 to 16, labels [N] int32."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load() -> Digits:
    """The digits and the split that all scores refer to: 1,437 to train on, 360 held out, class by class."""
    pixels, target = (np.asarray(array) for array in load_digits(return_X_y=True))
    images = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = target.astype(np.int32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_IMAGES, random_state=0, stratify=labels.tolist()
    )
    return Digits(train_images, train_labels, test_images, test_labels)


def prepare(out: str | Path) -> Manifest:
    """Writes the digits as shards to `out`; the same bytes every time.

    Raises:
        InputError: `out` is something else than an earlier set of digits, or the disk takes no more.
    """
    digits = load()
    writer = Writer(
        out,
        name=NAME,
        fields={"mean": Field("uint8", (1, 8, 8, 1)), "label": Field("int32", ())},
        classes=[str(label) for label in range(10)],
        scale=1 / 8,
        shift=-1.0,
        made_by={
            "command": "python prepare.py digits",
            "source": f"sklearn.datasets.load_digits, scikit-learn {sklearn.__version__}",
            "split": f"train_test_split(test_size={TEST_IMAGES}, random_state=0, stratify=labels)",
        },
    )
    with writer:
        writer.write("train", {"mean": digits.train_images[:, None], "label": digits.train_labels})
        writer.write("test", {"mean": digits.test_images[:, None], "label": digits.test_labels})
    return writer.manifest
