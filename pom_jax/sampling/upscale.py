"""High resolution from low: sampling that starts at a smaller sample, enlarged and noised.

The authors' sampler for this, `UpscaleHeunVelocitySampler` of HoMM's branch `upscale`, draws both sizes at
once with one network: until a cut-off in time it mixes in the prediction for a smaller copy of the noisy
image. It takes noise averaged with the pixels for unit noise, divides the small prediction by the factor, and
makes steps of unshifted time between shifted times. Here the small sample is drawn first, by the network that
was trained for its size, and gives what such predictions would: whatever the noise of the start leaves of it.
"""

import os
from typing import Any

import jax
import numpy as np

from pom_jax.diffusion.paths import Path
from pom_jax.errors import BROKEN_NPZ, InputError

START = 0.7  # before the shift; the authors' default for the end of the mixing


def noised(path: Path, low: jax.Array, noise: jax.Array, t: float) -> jax.Array:
    """Smaller images [B, h, w, C], enlarged (bicubic) to the shape of unit noise [B, H, W, C], at time t."""
    return path.alpha(t) * jax.image.resize(low, noise.shape, "cubic") + path.sigma(t) * noise


def check_start(start: float) -> None:
    """Raises an InputError unless 0 < start <= 1."""
    if not 0 < start <= 1:
        raise InputError(
            f"upscale_start={start}: the time to start at is above 0 (data) and at most 1 (noise)"
        )


def read_low(file: str | os.PathLike[str], config: Any, *, pixels: bool) -> tuple[np.ndarray, np.ndarray]:
    """Reads samples to start from, as sample.py --out=FILE.npz writes them.

    Args:
        file: .npz with `arr_0` [N, h, w, C], pixels as uint8 or latents as float32, and `arr_1`, labels [N].
        config: `model` of the run that enlarges them.
        pixels: whether it draws pixels, and not latents.

    Returns:
        [N, h, w, C] float32 in the space of the model, and labels [N].

    Raises:
        InputError: no such file, or samples or labels that are not those of the model.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            low, labels = arrays["arr_0"], arrays["arr_1"]
    except BROKEN_NPZ as error:
        raise InputError(
            f"--upscale_from={file} is not an .npz of sample.py ({error}); draw one with "
            "python sample.py --workdir=... --out=FILE.npz"
        ) from error
    wanted = "pixels (uint8)" if pixels else "latents (float32)"
    if low.ndim != 4 or low.shape[-1] != config.channels or (low.dtype == np.uint8) != pixels:
        raise InputError(
            f"--upscale_from={file} holds {low.dtype} of shape {low.shape}, the model draws {wanted} of "
            f"{config.channels} channels; draw the smaller samples with a run of the same kind, and latents "
            "without --autoencoder"
        )
    if max(low.shape[1:3]) > config.image_size:
        raise InputError(
            f"--upscale_from={file} holds images of {low.shape[1]} x {low.shape[2]}, larger than the "
            f"model's {config.image_size} x {config.image_size}"
        )
    return (low / 127.5 - 1 if low.dtype == np.uint8 else low).astype(np.float32), labels
