"""Stable Diffusion's autoencoder: pixels to the mean and deviation of a latent, and latents to pixels."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pom_jax.errors import InputError
from pom_jax.vae.config import AutoencoderConfig
from pom_jax.vae.layers import Residual, conv, double, halve, middle, norm

LOG_VARIANCE = (-30.0, 20.0)


class AutoencoderKL(nn.Module):
    """The network of diffusers' `AutoencoderKL` (Rombach et al., 2022), channels last.

    On GPU and TPU products of float32 are as exact as JAX is told: to encode a data set with all digits, call
    it under `jax.default_matmul_precision("highest")`.

    Attributes:
        config: its sizes, such as `PRESETS["sd"]`. f is `config.downsampling`, 8 in all presets.
        dtype: of the convolutions and what passes between them. Parameters, normalisations, softmax and
            results are float32.
    """

    config: AutoencoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c, self.dtype)
        self.decoder = Decoder(c, self.dtype)
        if c.use_quant_conv:
            self.quant_conv = nn.Conv(2 * c.latent_channels, (1, 1), dtype=self.dtype)
        if c.use_post_quant_conv:
            self.post_quant_conv = nn.Conv(c.latent_channels, (1, 1), dtype=self.dtype)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """The images again, from the means of their latents: [B, H, W, 3], see `encode` and `decode`."""
        return self.decode(self.encode(pixels)[0])

    def encode(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The latents' distribution, independent normal variables: `mean + std * noise` is one latent.

        Args:
            pixels: [B, H, W, 3] in [-1, 1]; H and W multiples of f.

        Returns:
            mean, std: [B, H/f, W/f, C] float32, not scaled; the logarithm of std^2 is within [-30, 20].

        Raises:
            InputError: another shape.
        """
        c = self.config
        _check("pixels", pixels, c.in_channels)
        if any(side % c.downsampling for side in pixels.shape[1:3]):
            raise InputError(
                f"pixels {pixels.shape}: height and width must be multiples of {c.downsampling}; crop them"
            )
        h = self.encoder(pixels)
        if c.use_quant_conv:
            h = self.quant_conv(h)
        mean, log_variance = jnp.split(h.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.exp(0.5 * log_variance.clip(*LOG_VARIANCE))

    def decode(self, latents: jax.Array) -> jax.Array:
        """The images of latents.

        Args:
            latents: [B, H, W, C], not scaled: what a diffusion model draws is divided by the scaling factor
                first, then the shift factor added.

        Returns:
            [B, f H, f W, 3] float32; values lie about [-1, 1] and are not clipped.

        Raises:
            InputError: another shape.
        """
        _check("latents", latents, self.config.latent_channels)
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)


class Encoder(nn.Module):
    """Pixels [B, H, W, 3] -> mean and log variance [B, H/f, W/f, 2 C]."""

    config: AutoencoderConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, widths = self.config, self.config.block_out_channels
        x = conv(widths[0], self.dtype, "conv_in")(x)
        for i, width in enumerate(widths):
            for j in range(c.layers_per_block):
                x = Residual(width, c.norm_num_groups, self.dtype, name=f"down_{i}_resnet_{j}")(x)
            if i + 1 < len(widths):
                x = halve(x, self.dtype, f"down_{i}_downsample")
        x = middle(x, c.norm_num_groups, c.mid_block_add_attention, self.dtype)
        x = nn.silu(norm(c.norm_num_groups, "conv_norm_out")(x))
        return conv(2 * c.latent_channels, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Latents [B, H, W, C] -> pixels [B, f H, f W, 3]."""

    config: AutoencoderConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, widths = self.config, self.config.block_out_channels[::-1]
        x = conv(widths[0], self.dtype, "conv_in")(x)
        x = middle(x, c.norm_num_groups, c.mid_block_add_attention, self.dtype)
        for i, width in enumerate(widths):
            for j in range(c.layers_per_block + 1):
                x = Residual(width, c.norm_num_groups, self.dtype, name=f"up_{i}_resnet_{j}")(x)
            if i + 1 < len(widths):
                x = double(x, self.dtype, f"up_{i}_upsample")
        x = nn.silu(norm(c.norm_num_groups, "conv_norm_out")(x))
        return conv(c.out_channels, self.dtype, "conv_out")(x)


def _check(name: str, array: jax.Array, channels: int) -> None:
    if array.ndim != 4 or array.shape[-1] != channels:
        raise InputError(f"{name} {array.shape} must be [B, H, W, {channels}], channels last")
