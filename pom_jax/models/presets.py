"""Sizes by name: "DiPoM-XL/2", "DiPoM-R-B/4" (with registers), "DiT-S/8"."""

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

NAMES = tuple(f"{family}-{size}/{patch}" for family in FAMILIES for size in SIZES for patch in PATCHES)


def preset(name: str) -> dict[str, Any]:
    """The architecture fields of a model configuration.

    Args:
        name: family, size and patch size, such as "DiPoM-XL/2"; one of `NAMES`.

    Returns:
        Fields of `DiPoM` except those of the data (image_size, channels, num_classes) and of execution (scan,
        remat, dtype).

    Raises:
        InputError: for another name, with the nearest one.
    """
    choose("model name", name, NAMES)
    family, size, patch = name.replace("/", "-").rsplit("-", 2)
    wide = size in ("L", "XL")
    ffn_expansion = 4 if family == "DiT" else 2 if wide else 3
    fields = FAMILIES[family] | SIZES[size]
    return fields | {"patch_size": int(patch), "ffn_expansion": ffn_expansion, "n_timesteps": 1000}
