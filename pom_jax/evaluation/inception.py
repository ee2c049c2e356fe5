"""The InceptionV3 that FID is defined by: TensorFlow's graph `inception-2015-12-05`, as a Linen module.

It differs from the network that torchvision knows under this name: 1008 classes, average pools that do not
count the padding, a max pool in the last block, and TensorFlow 1's resizing in front. Modules bear the names
that its weights have in torch files. Everything is float32 at the highest precision of the device: scores
are compared in their last digits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from pom_jax.errors import InputError

SIZE = 299  # pixels along a side of what the network sees
POOL = 2048
CLASSES = 1008
SPATIAL_CHANNELS = 7  # of `mixed_6/conv:0`, the first ones, in ADM's sFID
SPATIAL = 17 * 17 * SPATIAL_CHANNELS
EPSILON = 1e-3


class Outputs(NamedTuple):
    """What the scores read off the network.

    Attributes:
        pool: [B, 2048] mean over the last feature map, `pool_3:0`: FID, precision, recall.
        spatial: [B, 2023] = 17 x 17 x 7, the first channels of `mixed_6/conv:0`, flattened: sFID.
        logits: [B, 1008] without their bias, as torch-fidelity and ADM take them: Inception Score.
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array


class Inception(nn.Module):
    """Images [B, H, W, 3] uint8 of any size -> `Outputs` (Szegedy et al., 2015, arXiv 1512.00567).

    Raises:
        InputError: images of another dtype or shape.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> Outputs:
        if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"Inception takes uint8 images [B, H, W, 3]; got {images.dtype} of shape {images.shape}"
            )
        x = (resize(images, SIZE) - 128) / 128
        x = Conv(32, 3, stride=2, name="Conv2d_1a_3x3")(x)
        x = Conv(32, 3, padding="VALID", name="Conv2d_2a_3x3")(x)
        x = Conv(64, 3, name="Conv2d_2b_3x3")(x)
        x = halve(x)
        x = Conv(80, 1, name="Conv2d_3b_1x1")(x)
        x = Conv(192, 3, padding="VALID", name="Conv2d_4a_3x3")(x)
        x = halve(x)
        x = BlockA(32, name="Mixed_5b")(x)
        x = BlockA(64, name="Mixed_5c")(x)
        x = BlockA(64, name="Mixed_5d")(x)
        x = BlockB(name="Mixed_6a")(x)
        x, _ = BlockC(128, name="Mixed_6b")(x)
        x, _ = BlockC(160, name="Mixed_6c")(x)
        x, first = BlockC(160, name="Mixed_6d")(x)  # TensorFlow's mixed_6
        x, _ = BlockC(192, name="Mixed_6e")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(max_pool=False, name="Mixed_7b")(x)
        x = BlockE(max_pool=True, name="Mixed_7c")(x)
        pool = x.mean(axis=(1, 2))
        spatial = first[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
        return Outputs(pool, spatial, Classes(name="fc")(pool))


def resize(images: jax.Array, size: int) -> jax.Array:
    """TensorFlow 1's bilinear resizing: corners are not aligned and pixels have no half: y = i * H / size.

    Args:
        images: [B, H, W, C] of any dtype.
        size: pixels along both sides of the result.

    Returns:
        [B, size, size, C] float32.
    """
    _, height, width, _ = images.shape
    top, bottom, down = _neighbours(height, size)
    left, right, across = _neighbours(width, size)
    x = images.astype(jnp.float32)

    def mix(first: jax.Array, second: jax.Array, part: np.ndarray) -> jax.Array:
        return first + (second - first) * part

    upper, lower = (mix(x[:, y][:, :, left], x[:, y][:, :, right], across[:, None]) for y in (top, bottom))
    return mix(upper, lower, down[:, None, None])


def _neighbours(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `size` places the two pixels it lies between, and how far from the first: 3 x [size]."""
    places = np.arange(size, dtype=np.float32) * (np.float32(length) / np.float32(size))
    first = places.astype(np.int32)
    return first, np.minimum(first + 1, length - 1), places - first.astype(np.float32)


class Conv(nn.Module):
    """Convolution without bias, batch norm of kept mean and variance, ReLU: [B, H, W, C] -> [B, h, w, F].

    Attributes:
        features: F.
        window: height and width.
        stride: 2 goes with "VALID".
        padding: "SAME" or "VALID".
    """

    features: int
    window: int | tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window = (self.window,) * 2 if isinstance(self.window, int) else self.window
        kernel = self.param("kernel", nn.initializers.he_normal(), (*window, x.shape[-1], self.features))
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, variance = (self.param(name, ones, (self.features,)) for name in ("scale", "variance"))
        bias, mean = (self.param(name, zeros, (self.features,)) for name in ("bias", "mean"))
        x = lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            "VALID" if self.stride == 2 else self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return nn.relu((x - mean) * (scale * lax.rsqrt(variance + EPSILON)) + bias)


class Classes(nn.Module):
    """The last layer: [B, 2048] -> [B, 1008]. Its bias is kept with the weights and not added."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], CLASSES))
        self.param("bias", nn.initializers.zeros, (CLASSES,))
        return jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST)


class BlockA(nn.Module):
    """[B, 35, 35, C] -> [B, 35, 35, 224 + pooled]."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = Conv(64, 1, name="branch1x1")(x)
        five = Conv(48, 1, name="branch5x5_1")(x)
        five = Conv(64, 5, name="branch5x5_2")(five)
        double = Conv(64, 1, name="branch3x3dbl_1")(x)
        double = Conv(96, 3, name="branch3x3dbl_2")(double)
        double = Conv(96, 3, name="branch3x3dbl_3")(double)
        pooled = Conv(self.pooled, 1, name="branch_pool")(average(x))
        return jnp.concatenate([single, five, double, pooled], axis=-1)


class BlockB(nn.Module):
    """[B, 35, 35, C] -> [B, 17, 17, 480 + C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = Conv(384, 3, stride=2, name="branch3x3")(x)
        double = Conv(64, 1, name="branch3x3dbl_1")(x)
        double = Conv(96, 3, name="branch3x3dbl_2")(double)
        double = Conv(96, 3, stride=2, name="branch3x3dbl_3")(double)
        return jnp.concatenate([single, double, halve(x)], axis=-1)


class BlockC(nn.Module):
    """[B, 17, 17, C] -> [B, 17, 17, 768], and the first branch alone, [B, 17, 17, 192]."""

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        row, column = (1, 7), (7, 1)
        first = Conv(192, 1, name="branch1x1")(x)
        seven = Conv(self.inner, 1, name="branch7x7_1")(x)
        seven = Conv(self.inner, row, name="branch7x7_2")(seven)
        seven = Conv(192, column, name="branch7x7_3")(seven)
        double = Conv(self.inner, 1, name="branch7x7dbl_1")(x)
        double = Conv(self.inner, column, name="branch7x7dbl_2")(double)
        double = Conv(self.inner, row, name="branch7x7dbl_3")(double)
        double = Conv(self.inner, column, name="branch7x7dbl_4")(double)
        double = Conv(192, row, name="branch7x7dbl_5")(double)
        pooled = Conv(192, 1, name="branch_pool")(average(x))
        return jnp.concatenate([first, seven, double, pooled], axis=-1), first


class BlockD(nn.Module):
    """[B, 17, 17, C] -> [B, 8, 8, 512 + C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = Conv(192, 1, name="branch3x3_1")(x)
        single = Conv(320, 3, stride=2, name="branch3x3_2")(single)
        seven = Conv(192, 1, name="branch7x7x3_1")(x)
        seven = Conv(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = Conv(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = Conv(192, 3, stride=2, name="branch7x7x3_4")(seven)
        return jnp.concatenate([single, seven, halve(x)], axis=-1)


class BlockE(nn.Module):
    """[B, 8, 8, C] -> [B, 8, 8, 2048]."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        row, column = (1, 3), (3, 1)
        first = Conv(320, 1, name="branch1x1")(x)
        single = Conv(384, 1, name="branch3x3_1")(x)
        singles = [
            Conv(384, window, name=f"branch3x3_2{place}")(single)
            for place, window in (("a", row), ("b", column))
        ]
        double = Conv(448, 1, name="branch3x3dbl_1")(x)
        double = Conv(384, 3, name="branch3x3dbl_2")(double)
        doubles = [
            Conv(384, window, name=f"branch3x3dbl_3{place}")(double)
            for place, window in (("a", row), ("b", column))
        ]
        pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME") if self.max_pool else average(x)
        pooled = Conv(192, 1, name="branch_pool")(pooled)
        return jnp.concatenate([first, *singles, *doubles, pooled], axis=-1)


def average(x: jax.Array) -> jax.Array:
    """Means over 3 x 3 pixels, at the border over those that exist."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def halve(x: jax.Array) -> jax.Array:
    """The largest of 3 x 3 pixels, at every other place."""
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")
