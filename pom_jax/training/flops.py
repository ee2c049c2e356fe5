"""Floating-point operations of a training step, counted by hand, and the peak of the devices.

The compiler's own count takes the body of a scan once, whatever its length.
"""

from collections.abc import Mapping
from typing import Any

import jax

from pom_jax.ops.windows import window_pairs

# Dense peak of one device in FLOP/s by its `device_kind`: (bfloat16, float32), from the makers' data sheets.
# XLA runs float32 products at the TF32 rate on GPUs and at the bfloat16 rate on TPUs by default.
PEAKS: Mapping[str, tuple[float, float]] = {
    "NVIDIA A100-SXM4-40GB": (312e12, 156e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 156e12),
    "NVIDIA A100 80GB PCIe": (312e12, 156e12),
    "NVIDIA H100 80GB HBM3": (989e12, 495e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA H200": (989e12, 495e12),
    "TPU v3": (123e12 / 2, 123e12 / 2),  # one JAX device is one of the chip's two cores
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5": (459e12, 459e12),
    "TPU v5p": (459e12, 459e12),
    "TPU v6 lite": (918e12, 918e12),
}


def forward_flops(model: Mapping[str, Any]) -> int:
    """Operations of the matrix products of one forward pass of one image (a multiply-add counts as two).

    Args:
        model: fields of `config.model`.
    """
    width, depth = model["width"], model["depth"]
    side = model["image_size"] // model["patch_size"]
    tokens = side**2 + model["registers"]
    conditions = tokens if model["positions"] == "learned" else 1
    patch = model["patch_size"] ** 2 * model["channels"]
    block = tokens * 2 * model["ffn_expansion"] * width**2 + conditions * 6 * width**2
    pom, attention = _pom_products(model, tokens), _attention_products(model, side, tokens)
    usual = {"pom": pom, "attention": attention, "hybrid": pom + attention}[model["mixer"]]
    every = model["attention_every"]
    attention_layers = depth // every if every else 0
    layers = depth * block + attention_layers * attention + (depth - attention_layers) * usual
    embeddings = tokens * patch * width + 2 * 4 * width**2
    head = tokens * width * patch + conditions * 2 * width**2
    return 2 * (layers + embeddings + head)


def _pom_products(model: Mapping[str, Any], tokens: int) -> int:
    """Multiply-adds of PoM for one image."""
    width = model["width"]
    expanded = model["expansion"] * width
    reads = 2 if model["phase_periods"] else 1
    if model["form"] == "product":
        return tokens * (1 + 2 * reads) * model["degree"] * expanded * width
    features = tokens * expanded * width // model["groups"]
    if model["gate_heads"] < 2:
        return features + 2 * tokens * reads * expanded * width
    gates = tokens * reads * model["gate_heads"] * width
    # Without a phase all tokens read one state, which makes the output's kernel as small as the gate's.
    out = reads * expanded * width * tokens if model["phase_periods"] else gates + expanded * width
    return features + gates + out


def _attention_products(model: Mapping[str, Any], side: int, tokens: int) -> int:
    """Multiply-adds of attention for one image: projections, and the pairs in its windows, exactly."""
    window, width = model["window"], model["width"]
    inner = model["num_heads"] * model["head_width"] or width
    pairs = window_pairs((side, side), window, model["registers"]) if window else tokens**2
    return 4 * tokens * width * inner + 2 * pairs * inner


def step_flops(model: Mapping[str, Any], batch_size: int) -> int:
    """Operations of one training step: forward once, backward twice that; recomputation is not counted."""
    return 3 * batch_size * forward_flops(model)


def peak_flops(dtype: str) -> float | None:
    """Peak of all devices together in FLOP/s, or None where it is not known (CPUs)."""
    found = PEAKS.get(jax.devices()[0].device_kind)
    return None if found is None else jax.device_count() * found[0 if dtype == "bfloat16" else 1]
