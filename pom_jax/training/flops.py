"""Floating-point operations of a training step, counted by hand, and the peak of the devices.

The compiler's own count takes the body of a scan once, whatever its length.
"""

from collections.abc import Mapping
from typing import Any

import jax

from pom_jax import models
from pom_jax.diffusion.frame_times import FrameTimes
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


def forward_flops(model: Mapping[str, Any], times: int = 1, drafts: int = 0) -> int:
    """Operations of the matrix products of one forward pass of one sample (a multiply-add counts as two).

    Args:
        model: fields of `config.model`.
        times: of a clip: 1, or the number of its frames of patches where each has a time of its own.
        drafts: of a clip, see `diffusion.FrameTimes`.
    """
    kind = models.family(model)
    usual: dict[str, Any] = {name: field.default for name, field in models.own_fields(kind).items()}
    model = usual | dict(model)
    if kind is models.DiPoM:
        return 2 * _image_products(model)
    return 2 * _clip_products(model, times, 1 + drafts)


def _image_products(model: Mapping[str, Any]) -> int:
    """Multiply-adds of a `DiPoM` for one image."""
    width, depth = model["width"], model["depth"]
    side = model["image_size"] // model["patch_size"]
    tokens = models.count_tokens(model)
    conditions = tokens if model["positions"] == "learned" else 1
    patch = model["patch_size"] ** 2 * model["channels"]
    block = tokens * 2 * model["ffn_expansion"] * width**2 + conditions * 6 * width**2
    window = model["window"]
    pairs = window_pairs((side, side), window, model["registers"]) if window else tokens**2
    pom, attention = _pom_products(model, tokens, tokens), _attention_products(model, tokens, tokens, pairs)
    layers = depth * block + _mixing(model, pom, attention)
    embeddings = tokens * patch * width + 2 * 4 * width**2
    head = tokens * width * patch + conditions * 2 * width**2
    return layers + embeddings + head


def _clip_products(model: Mapping[str, Any], times: int, takes: int) -> int:
    """Multiply-adds of a `Polymorpher` for one clip."""
    width, tokens = model["width"], models.count_tokens(model)
    frames = model["frames"] // model["frame_patch"] if model["frame_causal"] else 1
    # Every time modulates the text for itself.
    text = times * (model["text_length"] + model["time_token"])
    pom = _pom_products(model, tokens, tokens, len(model["reads"]), frames)
    attention = _attention_products(model, tokens, tokens, _clip_pairs(model, tokens, frames, takes))
    if model["mixer"] == "attention":
        reading = _attention_products(model, tokens, text, tokens * text)
    else:
        reading = _pom_products(dict(model) | {"phase_periods": ()}, tokens, text, states=times)
    block = reading + tokens * 2 * model["ffn_expansion"] * width**2 + times * 11 * width**2
    layers = model["depth"] * block + _mixing(model, pom, attention)
    patch = model["frame_patch"] * model["patch_size"] ** 2 * model["channels"]
    windows = model["past_frames"] * (model["patch_size"] // 2 * 2 + model["patch_size"]) ** 2
    context = tokens * windows * model["frame_patch"] * model["channels"] * width
    ends = 2 * tokens * patch * width + times * (2 * 4 + 2) * width**2
    words = model["text_length"] * model["text_width"] * width
    pooled = 4 * (model["text_width"] + width) * width if model["pooled_text"] else 0
    return takes * (layers + ends) + context + words + pooled


def _clip_pairs(model: Mapping[str, Any], tokens: int, frames: int, takes: int) -> int:
    """Pairs of a query and a key of attention in one take of a clip, whose frames are as many or one."""
    window, patch = model["window"], model["patch_size"]
    frame = (model["frame_height"] // patch, model["frame_width"] // patch)
    if not model["frame_causal"]:
        grid = (model["frames"] // model["frame_patch"], *frame)
        return window_pairs(grid, window) if window else tokens**2
    if model["mixer"] == "attention":
        return tokens**2 * min(takes, 2)  # a draft sees its own tokens and the clip's
    return frames * (window_pairs(frame, window) if window else (tokens // frames) ** 2)


def _mixing(model: Mapping[str, Any], pom: int, attention: int) -> int:
    """Multiply-adds of the mixers of all layers, from those of one layer of each kind."""
    depth, every = model["depth"], model["attention_every"]
    usual = {"pom": pom, "attention": attention, "hybrid": pom + attention}[model["mixer"]]
    of_attention = depth // every if every else 0
    return of_attention * attention + (depth - of_attention) * usual


def _pom_products(
    model: Mapping[str, Any], queries: int, context: int, reads: int = 1, states: int = 1
) -> int:
    """Multiply-adds of PoM for one sample, of whose states each query reads so many."""
    width = model["width"]
    expanded = model["expansion"] * width
    reads *= 2 if model["phase_periods"] else 1
    if model["form"] == "product":
        return (context + 2 * reads * queries) * model["degree"] * expanded * width
    features = context * expanded * width // model["groups"]
    if model["gate_heads"] < 2:
        return features + 2 * queries * reads * expanded * width
    gates = queries * reads * model["gate_heads"] * width
    # Without a phase many tokens read one state, which makes the output's kernel as small as the gate's.
    out = reads * expanded * width * queries if model["phase_periods"] else gates
    return features + gates + out + (0 if model["phase_periods"] else reads * states * expanded * width)


def _attention_products(model: Mapping[str, Any], queries: int, context: int, pairs: int) -> int:
    """Multiply-adds of attention for one sample: projections, and pairs of a query and a key."""
    width = model["width"]
    inner = model["num_heads"] * model["head_width"] or width
    return 2 * (queries + context) * width * inner + 2 * pairs * inner


def step_flops(
    model: Mapping[str, Any], batch_size: int, frames: FrameTimes | None = None, count: int = 0
) -> int:
    """Operations of one training step: forward once, backward twice that; recomputation is not counted.

    Args:
        model: fields of `config.model`.
        batch_size: images or clips.
        frames: what clips are learned as.
        count: frames of patches of a clip.
    """
    if frames is None:
        return 3 * batch_size * forward_flops(model)
    films = forward_flops(model, 1 if frames.kind == "shared" else count, frames.drafts)
    still = forward_flops(dict(model) | {"frames": model.get("frame_patch", 1)})
    return 3 * (batch_size // frames.film_every * films + batch_size * frames.still_frames * still)


def peak_flops(dtype: str) -> float | None:
    """Peak of all devices together in FLOP/s, or None where it is not known (CPUs)."""
    found = PEAKS.get(jax.devices()[0].device_kind)
    return None if found is None else jax.device_count() * found[0 if dtype == "bfloat16" else 1]
