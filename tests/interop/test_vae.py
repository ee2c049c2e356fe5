"""The autoencoder against diffusers' AutoencoderKL with the same random weights, read from its own files."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pom_jax import vae
from pom_jax.vae.config import to_diffusers

torch = pytest.importorskip("torch")
AutoencoderKL = pytest.importorskip("diffusers").AutoencoderKL

TOLERANCE = 2e-4  # of the maximum
SD3_STYLE = {
    **to_diffusers(vae.PRESETS["tiny"]),
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
}
WITHOUT_ATTENTION = {
    **to_diffusers(vae.PRESETS["tiny"]),
    "block_out_channels": [8, 24],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 2,
    "mid_block_add_attention": False,
}


def theirs(config: dict[str, Any]) -> Any:
    """diffusers' autoencoder in which no parameter is as it begins, norms and biases included."""
    torch.manual_seed(0)
    model = AutoencoderKL(**{name: value for name, value in config.items() if name != "_class_name"}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # the biases, and the scales of norms
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def outputs(model: Any, params: Any, pixels: np.ndarray, latents: np.ndarray) -> list[Any]:
    mean, std = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode"))(params, pixels)
    decoded = jax.jit(lambda p, z: model.apply({"params": p}, z, method="decode"))(params, latents)
    return [mean, std, decoded]


@pytest.mark.parametrize(
    ("config", "side"),
    [
        (to_diffusers(vae.PRESETS["tiny"]), 32),
        (SD3_STYLE, 32),
        (WITHOUT_ATTENTION, 8),
        (to_diffusers(vae.PRESETS["sd"]), 64),
    ],
    ids=["tiny", "sd3", "no attention", "sd"],
)
def test_encodes_and_decodes_as_diffusers(config: dict[str, Any], side: int, tmp_path: Path) -> None:
    reference = theirs(config)
    reference.save_pretrained(tmp_path)
    model, params, scale, shift = vae.load_autoencoder(tmp_path)
    assert (scale, shift) == (config["scaling_factor"], config["shift_factor"])

    rng, small = np.random.default_rng(0), side // model.config.downsampling
    pixels = rng.uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    latents = rng.normal(size=(2, small, small, model.config.latent_channels)).astype(np.float32)
    with torch.no_grad():
        posterior = reference.encode(torch.from_numpy(pixels).movedim(-1, 1)).latent_dist
        decoded = reference.decode(torch.from_numpy(latents).movedim(-1, 1)).sample
    expected = [array.movedim(1, -1).numpy() for array in (posterior.mean, posterior.std, decoded)]
    for ours, wanted in zip(outputs(model, params, pixels, latents), expected, strict=True):
        assert ours.shape == wanted.shape
        assert np.abs(ours - wanted).max() < TOLERANCE * np.abs(wanted).max()


def test_diffusers_reads_what_is_saved_here_bit_for_bit(tmp_path: Path) -> None:
    reference = theirs(SD3_STYLE)
    reference.save_pretrained(tmp_path / "theirs")
    model, params, *_ = vae.load_autoencoder(tmp_path / "theirs")
    vae.save_autoencoder(tmp_path / "ours", model, params)
    again = AutoencoderKL.from_pretrained(tmp_path / "ours")
    assert again.state_dict().keys() == reference.state_dict().keys()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    for name in SD3_STYLE.keys() - {"_class_name"}:
        assert again.config[name] == SD3_STYLE[name]
