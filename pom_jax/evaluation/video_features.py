"""The Fréchet distance of clips in the features of a network that users bring: with I3D's logits, FVD.

The network itself is not run here. Those that the field uses come as TorchScript, which is a program: to load
it is to run it. So it is left to its owner to run it on real and on drawn clips, and to save what it says.
FVD is of the 400 logits of an I3D trained on Kinetics-400, on clips of 16 frames of 224 x 224, and of 2,048
clips or more; it falls with their number (Unterthiner et al., 2018).
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pom_jax.errors import BROKEN_NPZ, InputError
from pom_jax.evaluation.frechet import Gaussian, Moments, gaussian_distance


class Features(NamedTuple):
    """Features of clips as one Gaussian.

    Attributes:
        file: where they are from.
        count: N, how many clips they are of.
        gaussian: mean [F] and covariance [F, F].
        sha256: of the file.
    """

    file: str
    count: int
    gaussian: Gaussian
    sha256: str

    @property
    def width(self) -> int:
        """F, features of a clip."""
        return len(self.gaussian.mean)

    @property
    def about(self) -> str:
        """For people."""
        return f"{self.count:,} clips of {self.width} features from {self.file}, sha256 {self.sha256[:16]}"


def read_features(file: str | os.PathLike[str]) -> Features:
    """Reads the features of clips.

    Args:
        file: .npy with an array [N, F], or .npz with that array alone, or one named `features` or `arr_0`.

    Raises:
        InputError: no such file or array, fewer than two clips, values that are not finite, or the same
            features for all clips.
    """
    found = _read(Path(file))
    if found.ndim != 2 or len(found) < 2 or not found.shape[1] or found.dtype.kind not in "fiu":
        raise InputError(
            f"{file}: features are numbers [N, F] of at least two clips, found {found.dtype} {found.shape}"
        )
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any():
        raise InputError(f"{file}: features of {bad.sum()} of {len(found)} clips are not finite")
    moments = Moments(found.shape[1])
    moments.add(found)
    gaussian = moments.gaussian()
    if not np.diag(gaussian.covariance).any():
        raise InputError(f"{file}: all {len(found)} clips have the same features")
    return Features(str(file), len(found), gaussian, hashlib.sha256(Path(file).read_bytes()).hexdigest())


def _read(file: Path) -> np.ndarray:
    try:
        with file.open("rb") as opened:
            content = np.load(opened, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            names = [name for name in ("features", "arr_0") if name in content.files] or content.files
            if len(names) > 1 and names[0] not in ("features", "arr_0"):
                raise InputError(f"{file} holds {', '.join(names)}; name the features `features`")
            return content[names[0]]
    except InputError:
        raise
    except (*BROKEN_NPZ, IndexError) as error:
        raise InputError(f"{file} is no .npy or .npz with features [N, F] of clips: {error}") from error


def compare_features(drawn: Features, real: Features) -> tuple[float, list[str]]:
    """The Fréchet distance, and what makes it less than it seems.

    Raises:
        InputError: features of two networks.
    """
    if drawn.width != real.width:
        raise InputError(
            f"{drawn.file} has {drawn.width} features a clip, {real.file} {real.width}: both must come "
            "from one network"
        )
    notes = [
        f"{features.count:,} clips give no full covariance of {features.width} features; the distance is too "
        f"high, take more than {features.width} clips ({features.file})"
        for features in (drawn, real)
        if features.count <= features.width
    ]
    if drawn.count != real.count:
        notes.append(f"it falls with the number of clips, here {drawn.count:,} against {real.count:,}")
    if drawn.sha256 == real.sha256:
        notes.append("both files are the same")
    return gaussian_distance(drawn.gaussian, real.gaussian), notes


def report_features(drawn: Features, real: Features, out: str | os.PathLike[str]) -> str:
    """Compares them, and writes feature_scores.json to the folder `out`; what to print.

    Raises:
        InputError: see `compare_features`; nothing can be written there.
    """
    distance, notes = compare_features(drawn, real)
    content = {"frechet": distance, "drawn": drawn.about, "real": real.about, "notes": notes}
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "feature_scores.json").write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"the scores cannot be written to {out}: {error}") from error
    lines = [f"Fréchet distance of features: {distance:.4f}", *(f"note: {note}" for note in notes)]
    return "\n".join([*lines, f"protocol: drawn {drawn.about}; real {real.about}"])
