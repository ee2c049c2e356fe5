"""Real pictures without a download: crops of those that scikit-learn and scikit-image bring along."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


@functools.cache
def photographs():
    """Name -> [H, W, 3] uint8."""
    found = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    for name in ("astronaut", "coffee"):
        with Image.open(Path(spec.origin).parent / "data" / f"{name}.png") as picture:
            found[name] = np.asarray(picture.convert("RGB"))
    return found


def write_crops(folder, per_class, sides=(60, 200), classes=("astronaut", "china", "coffee", "flower")):
    """Writes random crops as PNG and JPEG, a subfolder for each photograph."""
    rng = np.random.default_rng(0)
    for name in classes:
        photograph = photographs()[name]
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            height, width = rng.integers(*sides, size=2)
            top, left = (int(rng.integers(0, photograph.shape[i] - s)) for i, s in ((0, height), (1, width)))
            crop = Image.fromarray(photograph[top : top + height, left : left + width])
            crop.save(folder / name / f"{number:02d}.{'jpg' if number % 2 else 'png'}")
    return folder
