"""Sizes by name: "DiPoM-XL/2", "DiPoM-R-B/4" (with registers), "DiT-S/8", "Polymorpher-B/2" (video)."""

from typing import Any

from pom_jax.errors import choose

# Width, depth and heads of attention, shared by every family (official v1; the same as DiT's).
SIZES = {
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}

PATCHES = (2, 4, 8)

_POM = {
    "mixer": "pom",
    "form": "product",
    "degree": 2,
    "expansion": 2,
    "gate_heads": 1,
    "groups": 1,
    "rotary": False,
    "phase_periods": (),
    "attention_every": 0,
    "window": 0,
    "head_width": 0,
}
_PLAIN = {"registers": 0, "positions": "sincos", "clamp": 0.0}

# DiPoM is the authors' DiH, DiPoM-R their DiH++, and DiT their baseline: one word apart from DiPoM.
FAMILIES = {
    "DiPoM": _POM | _PLAIN,
    "DiPoM-R": _POM | {"registers": 16, "positions": "learned", "clamp": 255.0},
    "DiT": _POM | _PLAIN | {"mixer": "attention"},
}

# The text-to-video model's sizes (the authors' branch `text2video`): patches of two frames.
VIDEO_SIZES = {"S": SIZES["S"], "B": SIZES["B"], "XL": SIZES["XL"] | {"depth": 20}}
_VIDEO = _POM | {"clamp": 0.0, "frame_patch": 2, "frame_causal": False}
_VIDEO |= {"reads": ("all",), "order": "text_first", "positions": "sincos_phase"}
_VIDEO |= {"time_token": False, "pooled_text": False, "past_frames": 0}
VIDEO_FAMILIES = {
    "Polymorpher": _VIDEO,
    "TextVideoDiT": _VIDEO | {"mixer": "attention"},
}

NAMES = tuple(f"{family}-{size}/{patch}" for family in FAMILIES for size in SIZES for patch in PATCHES)
VIDEO_NAMES = tuple(
    f"{family}-{size}/{patch}" for family in VIDEO_FAMILIES for size in VIDEO_SIZES for patch in (2, 4)
)


def preset(name: str) -> dict[str, Any]:
    """The architecture fields of a model configuration.

    Args:
        name: family, size and patch size, such as "DiPoM-XL/2"; one of `NAMES`, or of `VIDEO_NAMES` for
            `Polymorpher`.

    Returns:
        Fields of `DiPoM`, or of `Polymorpher`, except those of the data (image_size, channels, num_classes;
        frames, frame_height, frame_width, channels and those of texts) and of execution (scan, remat, dtype).

    Raises:
        InputError: for another name, with the nearest one.
    """
    choose("model name", name, (*NAMES, *VIDEO_NAMES))
    family, size, patch = name.replace("/", "-").rsplit("-", 2)
    wide = size in ("L", "XL")
    attention = family in ("DiT", "TextVideoDiT")
    fields = {"patch_size": int(patch), "ffn_expansion": 4 if attention else 2 if wide else 3}
    fields["n_timesteps"] = 1000
    if family in VIDEO_FAMILIES:
        return VIDEO_FAMILIES[family] | VIDEO_SIZES[size] | fields
    return FAMILIES[family] | SIZES[size] | fields
