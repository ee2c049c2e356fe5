"""The sizes of an autoencoder: diffusers' fields from a config.json or a preset, and back."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pom_jax.errors import InputError, choose

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"

# Fields of a config.json that cannot change here, and what they can say.
FIXED = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu", "swish"),  # two names of x sigmoid(x)
    "latents_mean": (None,),  # of each channel; the scale and shift of a manifest are one for all
    "latents_std": (None,),
}


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The fields of diffusers' `AutoencoderKL` by their names there; a default is what an absent field means.

    A diffusion model sees (latent - shift_factor) * scaling_factor, latents of about unit variance: in a
    manifest, scale = scaling_factor and shift = -shift_factor * scaling_factor.

    Attributes:
        in_channels, out_channels: channels of the pixels that are read and made.
        block_out_channels: channels at each resolution, each half the one before.
        layers_per_block: residual blocks a resolution in the encoder; the decoder has one more.
        latent_channels: C of the latents.
        norm_num_groups: groups of every normalisation; must divide every entry of `block_out_channels`.
        sample_size: side in pixels of the images it was made for; files keep it, nothing here depends on it.
        scaling_factor, shift_factor: see above.
        use_quant_conv, use_post_quant_conv: a 1 x 1 convolution after the encoder, before the decoder.
        mid_block_add_attention: attention over all pixels at the lowest resolution.

    Raises:
        InputError: a value of another type, or one that does not fit.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_value(field.name, getattr(self, field.name), field.type)
        groups = self.norm_num_groups
        if any(width % groups for width in self.block_out_channels):
            raise InputError(
                f"block_out_channels = {self.block_out_channels} are not all multiples of "
                f"norm_num_groups = {groups}: change one of them"
            )

    @property
    def downsampling(self) -> int:
        """Pixels of an image to one of its latent, along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)


def _check_value(name: str, value: Any, kind: Any) -> None:
    if name == "block_out_channels":
        if not isinstance(value, tuple) or not value or not all(type(w) is int and w > 0 for w in value):
            raise InputError(f"{name} = {value!r} must be channels above 0, one number for each resolution")
    elif kind is bool:
        if type(value) is not bool:
            raise InputError(f"{name} = {value!r} must be true or false")
    elif kind is int:
        if type(value) is not int or value < 1:
            raise InputError(f"{name} = {value!r} must be a whole number above 0")
    elif type(value) not in (int, float) or not math.isfinite(value):
        raise InputError(f"{name} = {value!r} must be a finite number")
    elif name == "scaling_factor" and value <= 0:
        raise InputError(f"{name} = {value!r} must be above 0")


SD = AutoencoderConfig(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, sample_size=256
)
_SIXTEEN = dataclasses.replace(
    SD, latent_channels=16, sample_size=1024, use_quant_conv=False, use_post_quant_conv=False
)

# The config.json of stabilityai/sd-vae-ft-ema and of the `vae` folders of Stable Diffusion XL, 3 and FLUX.1;
# `tiny`, for trying things out, has no weights anywhere.
PRESETS: Mapping[str, AutoencoderConfig] = {
    "sd": SD,
    "sdxl": dataclasses.replace(SD, scaling_factor=0.13025, sample_size=1024),
    "sd3": dataclasses.replace(_SIXTEEN, scaling_factor=1.5305, shift_factor=0.0609),
    "flux": dataclasses.replace(_SIXTEEN, scaling_factor=0.3611, shift_factor=0.1159),
    "tiny": dataclasses.replace(
        SD, block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, sample_size=32
    ),
}


def read_config(source: str | os.PathLike[str]) -> AutoencoderConfig:
    """A preset by its name, or diffusers' config.json.

    Raises:
        InputError: neither; or a field that the port cannot follow.
    """
    path = Path(source)
    if str(source) in PRESETS or path.suffix != ".json":
        return choose("the autoencoder's config", str(source), PRESETS)
    if not path.is_file():
        raise InputError(f"{path} is no file; give a config.json or one of {', '.join(PRESETS)}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}, the fields of an AutoencoderKL are needed"
        )
    try:
        return from_diffusers(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def from_diffusers(content: Mapping[str, Any]) -> AutoencoderConfig:
    """The config of the fields of a config.json.

    Raises:
        InputError: a field or value that the port cannot follow.
    """
    for name, allowed in FIXED.items():
        if content.get(name, allowed[0]) not in allowed:
            raise InputError(
                f"{name} = {content[name]!r} cannot be followed, only {' or '.join(map(repr, allowed))}"
            )
    names = {field.name for field in dataclasses.fields(AutoencoderConfig)}
    # force_upcast warns of float16, which is not offered here.
    known = names | FIXED.keys() | {"down_block_types", "up_block_types", "force_upcast"}
    if unknown := [name for name in content if name not in known and not name.startswith("_")]:
        raise InputError(f"the fields {', '.join(unknown)} are unknown; delete those that change no number")
    fields = {name: content[name] for name in names if name in content}
    for name in ("block_out_channels", "sample_size"):
        if isinstance(fields.get(name), list):
            fields[name] = tuple(fields[name])
    if isinstance(fields.get("sample_size"), tuple):
        fields["sample_size"] = max(fields["sample_size"])
    if fields.get("shift_factor", 0.0) is None:
        fields["shift_factor"] = 0.0
    config = AutoencoderConfig(**fields)
    for name, kind in (("down_block_types", DOWN), ("up_block_types", UP)):
        found, wanted = content.get(name, [kind]), [kind] * len(config.block_out_channels)
        if found != wanted:
            raise InputError(
                f"{name} = {found!r} cannot be followed; the {len(wanted)} resolutions need {wanted}"
            )
    return config


def to_diffusers(config: AutoencoderConfig) -> dict[str, Any]:
    """The fields of a config.json; the inverse of `from_diffusers`."""
    resolutions = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "down_block_types": [DOWN] * resolutions,
        "up_block_types": [UP] * resolutions,
        **dataclasses.asdict(config),
        "block_out_channels": list(config.block_out_channels),
    }
