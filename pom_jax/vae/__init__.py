"""Stable Diffusion's autoencoder in Flax: images to latents and back, with diffusers' weights."""

from pom_jax.vae.chunks import decode_in_chunks as decode_in_chunks
from pom_jax.vae.chunks import encode_in_chunks as encode_in_chunks
from pom_jax.vae.config import PRESETS as PRESETS
from pom_jax.vae.config import AutoencoderConfig as AutoencoderConfig
from pom_jax.vae.config import read_config as read_config
from pom_jax.vae.files import load_autoencoder as load_autoencoder
from pom_jax.vae.files import save_autoencoder as save_autoencoder
from pom_jax.vae.files import weights_sha256 as weights_sha256
from pom_jax.vae.model import AutoencoderKL as AutoencoderKL
