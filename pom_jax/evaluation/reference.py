"""The real images that samples are scored against: ADM's npz of statistics, images, or what was kept of them.

ADM's files (https://github.com/openai/guided-diffusion/tree/main/evaluations) hold `mu`, `sigma` of the pool
features and `mu_s`, `sigma_s` of the spatial ones over a whole training set, and in `arr_0` images of it for
precision and recall, 10,000 for ImageNet. pytorch-fid's hold `mu` and `sigma` alone. Ours hold the features
themselves for precision and recall, `pool`, in `inception` the checksum of the weights that made them, and in
`about` of which images they are.
"""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pom_jax.data.pictures import find_pictures
from pom_jax.errors import BROKEN_NPZ, InputError
from pom_jax.evaluation.features import BATCH, Statistics, extract_features
from pom_jax.evaluation.frechet import Gaussian
from pom_jax.evaluation.images import Images, Source, open_images
from pom_jax.evaluation.inception import POOL, SPATIAL
from pom_jax.evaluation.inception_weights import InceptionWeights, file_sha256
from pom_jax.evaluation.shards import is_data_set, open_shards
from pom_jax.sampling.progress import Progress
from pom_jax.sampling.writers import check_place

KEPT = 10_000  # images of a folder that serve precision and recall: as many as ADM's ImageNet files hold


class Reference(NamedTuple):
    """What samples are compared with, computed once for any number of comparisons.

    Attributes:
        statistics: for FID and sFID.
        pool: [K, 2048] float32 features for precision and recall; None where only statistics are known.
        protocol: where all this is from, for the protocol line.
    """

    statistics: Statistics
    pool: np.ndarray | None
    protocol: str


class OpenReference(NamedTuple):
    """A reference that was looked at, and not yet put through the network.

    Attributes:
        statistics: those a file held.
        images: whose features are missing.
        keep: images for precision and recall at most, spread evenly over the set: all of a file (None), as
            ADM's suite does, and 10,000 of a folder or an array.
        protocol: as in `Reference`.
        pool: as in `Reference`, where a file held it.
        inception: checksum of the weights that made the pool; None where it is not known.
    """

    statistics: Statistics | None
    images: Images | None
    keep: int | None
    protocol: str
    pool: np.ndarray | None = None
    inception: str | None = None

    def check(self, weights: InceptionWeights) -> None:
        """Raises an InputError unless these weights may have made what a file held."""
        if self.inception is not None and self.inception != weights.sha256:
            raise InputError(
                f"the reference was made with Inception of sha256 {self.inception}, and {weights.name} has "
                f"{weights.sha256}: give the same weights, or make the reference again"
            )


def open_reference(
    source: Source, size: int | None = None, autoencoder: str | os.PathLike[str] | None = None
) -> OpenReference:
    """Looks at a reference and reads the statistics a file holds.

    Args:
        source: an .npz with statistics, images or both; a folder of pictures, or of a data set by prepare.py;
            or uint8 [N, H, W, 3].
        size: pictures of a folder are cropped to this many pixels, see `open_images`.
        autoencoder: of a data set of latents, see `open_shards`.

    Raises:
        InputError: nothing there, or neither statistics nor images in it.
    """
    statistics, images, keep, pool, inception, parts = None, None, None, None, None, []
    if is_data_set(source):
        images, keep = open_shards(str(source), autoencoder), KEPT
        parts.append(images.name)
    elif not isinstance(source, (str, os.PathLike)) or not Path(source).is_file():
        images, keep = open_images(source, size), KEPT
        parts.append(images.name)
        if isinstance(source, (str, os.PathLike)):
            parts.append(f"sha256 {_listing_sha256(Path(source))} of names and sizes")
    else:
        names = _names(source)
        if "mu" in names:
            statistics = read_statistics(source)
        if statistics is None or "arr_0" in names:
            images = open_images(source)
        if "pool" in names:
            pool, inception = _read_pool(source)
        parts += [str(source), f"sha256 {file_sha256(source)}"]
        if "about" in names:
            parts.append(f"made of ({_read_about(source)})")
    if statistics is not None:
        parts.append("statistics of the file")
    if images is not None:
        count, height, width, _ = images.shape
        parts.append(f"{count:,} images of {width} x {height}")
    if pool is not None:
        parts.append(f"features of {len(pool):,} images for precision and recall")
    return OpenReference(statistics, images, keep, ", ".join(parts), pool, inception)


def check_size(size: int | None, *sources: Source | None) -> None:
    """Raises an InputError if there is a size to crop to, and no folder of pictures among the sources.

    Args:
        size: see `open_reference`.
        sources: see `open_reference` and `open_images`; None is none. What does not exist may be a folder.
    """
    given = [source for source in sources if source is not None]
    if size is not None and all(_is_no_folder(source) for source in given):
        names = " and ".join(str(one) if isinstance(one, (str, os.PathLike)) else "an array" for one in given)
        raise InputError(
            f"--crop={size} (size={size} in Python) crops pictures of a folder, and an .npz, an array or a "
            f"data set is taken as it is, such as {names}: leave it out, or give a folder of pictures"
        )


def _is_no_folder(source: Source) -> bool:
    return not isinstance(source, (str, os.PathLike)) or Path(source).is_file() or is_data_set(source)


def fit_reference(
    opened: OpenReference,
    weights: InceptionWeights,
    *,
    batch_size: int = BATCH,
    progress: Progress | None = None,
) -> Reference:
    """Puts the images of a reference through the network; statistics that a file held are taken as they are.

    Args:
        opened: from `open_reference`.
        weights: from `load_inception`.
        batch_size, progress: as in `extract_features`.

    Raises:
        InputError: other weights than those that made it, or images that cannot be read.
    """
    opened.check(weights)
    if opened.images is None:
        assert opened.statistics is not None
        return Reference(opened.statistics, opened.pool, opened.protocol)
    found = extract_features(
        opened.images, weights, batch_size=batch_size, keep=opened.keep, progress=progress
    )
    protocol = opened.protocol
    if len(found.pool) < opened.images.count:
        protocol += f", {len(found.pool):,} of them for precision and recall"
    return Reference(opened.statistics or found.statistics, found.pool, protocol)


def read_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Reads `mu`, `sigma` and, where they are, `mu_s`, `sigma_s` of an npz, whatever their dtype, as float64.

    Raises:
        InputError: not such a file, or sizes that are not those of FID's Inception.
    """
    names = _names(path)
    if not {"mu", "sigma"} <= set(names):
        raise InputError(f"{path} holds {', '.join(names) or 'nothing'}; statistics are mu and sigma")
    if len({"mu_s", "sigma_s"} & set(names)) == 1:
        raise InputError(f"{path} holds one of mu_s and sigma_s; sFID needs both")
    try:
        with np.load(path, allow_pickle=False) as content:
            pool = Gaussian(content["mu"], content["sigma"])
            spatial = Gaussian(content["mu_s"], content["sigma_s"]) if "mu_s" in names else None
    except BROKEN_NPZ as error:
        raise InputError(f"{path} is no npz of statistics: {error}") from error
    return Statistics(
        _checked(path, "mu, sigma", pool, POOL),
        None if spatial is None else _checked(path, "mu_s, sigma_s", spatial, SPATIAL),
    )


def write_statistics(
    path: str | os.PathLike[str], statistics: Statistics, images: np.ndarray | None = None
) -> None:
    """Writes an npz that this module and ADM's suite read, whole or not at all.

    Args:
        path: ends in .npz; its folder is made.
        statistics: float64 as they are.
        images: uint8 [N, H, W, 3] of the reference, for precision and recall; ADM's suite needs them.

    Raises:
        InputError: another ending, images of another kind, or no room on the disk.
    """
    content = _arrays(statistics)
    if images is not None:
        open_images(images)
        content["arr_0"] = images
    _write(path, content)


def save_reference(
    path: str | os.PathLike[str], reference: Reference, weights: InceptionWeights | None = None
) -> None:
    """Writes an npz of all that a comparison needs, so that the images need not be put through again.

    Args:
        path: ends in .npz; its folder is made.
        reference: from `fit_reference`.
        weights: those of `fit_reference`; None where they are not known.

    Raises:
        InputError: another ending, or no room on the disk.
    """
    content = _arrays(reference.statistics) | {"about": np.array(reference.protocol)}
    if reference.pool is not None:
        content["pool"] = reference.pool
    if weights is not None:
        content["inception"] = np.array(weights.sha256)
    _write(path, content)


def read_reference(path: str | os.PathLike[str]) -> Reference:
    """What `save_reference` wrote, with the protocol of the images that it was made of.

    Raises:
        InputError: no such file, or a damaged one.
    """
    names = _names(path)
    if "about" not in names:
        raise InputError(f"{path} holds {', '.join(names)}; a reference that was kept has about, too")
    pool = _read_pool(path)[0] if "pool" in names else None
    return Reference(read_statistics(path), pool, _read_about(path))


def check_file(path: str | os.PathLike[str]) -> None:
    """Raises an InputError unless statistics can be written to a file of that name."""
    if Path(path).suffix != ".npz":
        raise InputError(f"{path} ends in {Path(path).suffix!r}; statistics are written as .npz")
    check_place(path)


def _arrays(statistics: Statistics) -> dict[str, Any]:
    arrays: dict[str, Any] = {"mu": statistics.pool.mean, "sigma": statistics.pool.covariance}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    return arrays


def _write(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    check_file(path)
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, **content)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _read_pool(path: str | os.PathLike[str]) -> tuple[np.ndarray, str | None]:
    """`pool` of an npz of `save_reference`, and the checksum of the weights that made it."""
    try:
        with np.load(path, allow_pickle=False) as content:
            pool = content["pool"]
            inception = str(content["inception"]) if "inception" in content else None
    except BROKEN_NPZ as error:
        raise InputError(f"{path} is no whole npz of statistics: {error}") from error
    if pool.dtype != np.float32 or pool.ndim != 2 or pool.shape[1] != POOL or not np.isfinite(pool).all():
        raise InputError(f"{path}: pool is {pool.dtype} {list(pool.shape)}, not finite float32 [K, {POOL}]")
    return pool, inception


def _read_about(path: str | os.PathLike[str]) -> str:
    """`about` of an npz of `save_reference`: the protocol of the reference it was made of."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return str(content["about"])
    except BROKEN_NPZ as error:
        raise InputError(f"{path} is no whole npz of statistics: {error}") from error


def _listing_sha256(folder: Path) -> str:
    """A checksum over which pictures there are: cheap, and others hardly have the same sizes."""
    lines = [
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in sorted(map(Path, find_pictures(folder)))
    ]
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()


def _names(path: str | os.PathLike[str]) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except BROKEN_NPZ as error:
        raise InputError(f"{path} is no npz of statistics or images: {error}") from error


def _checked(path: str | os.PathLike[str], names: str, found: Gaussian, features: int) -> Gaussian:
    mean, covariance = np.asarray(found.mean), np.asarray(found.covariance)
    if mean.shape != (features,) or covariance.shape != (features, features):
        raise InputError(
            f"{path}: {names} are {list(mean.shape)}, {list(covariance.shape)}; those of FID's Inception are "
            f"[{features}], [{features}, {features}]: these are statistics of something else"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError(f"{path}: {names} have NaN or infinities")
    return Gaussian(mean.astype(np.float64), covariance.astype(np.float64))
