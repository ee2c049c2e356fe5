"""What the fields and the inputs of a `Polymorpher` can be."""

from typing import Any

import jax
import jax.numpy as jnp

from pom_jax.errors import InputError
from pom_jax.models.checks import (
    CHOICES,
    check_divisors,
    check_layers,
    check_pom_form,
    check_values,
    has_attention,
)
from pom_jax.nn.text_block import ORDERS
from pom_jax.nn.video_embeddings import FRAME_POSITIONS
from pom_jax.ops.reads import READS

# The words a field can be.
WORDS = CHOICES | {
    "positions": (*FRAME_POSITIONS, "learned"),
    "order": ORDERS,
}


def check_polymorpher(m: Any) -> None:
    """Raises an InputError for the first field of a `Polymorpher` that is wrong, or does not fit another."""
    check_values(m, WORDS)
    check_layers(m, of_pom=("phase_periods",))
    has_pom, expanded = m.mixer != "attention", m.expansion * m.width
    rules = [
        (m.frames % m.frame_patch, "frames", m.frames, "frame_patch", m.frame_patch),
        (m.frame_height % m.patch_size, "frame_height", m.frame_height, "patch_size", m.patch_size),
        (m.frame_width % m.patch_size, "frame_width", m.frame_width, "patch_size", m.patch_size),
    ]
    if has_attention(m) and not m.head_width:
        rules.append((m.width % m.num_heads, "width", m.width, "num_heads", m.num_heads))
    if has_pom and m.form == "power":
        heads = max(m.gate_heads, 1)
        rules.append((m.width % m.groups, "width", m.width, "groups", m.groups))
        rules.append((expanded % heads, "expansion * width", expanded, "gate_heads", heads))
    if has_pom and m.rotary:
        rules.append((expanded % 6, "expansion * width", expanded, "rotary pairs on three axes", 6))
    check_divisors(rules)
    check_pom_form(m)
    if m.positions == "sincos_phase" and m.width % 8:
        raise InputError(f"model.width={m.width} must be a multiple of 8 for positions='sincos_phase'")
    if m.positions == "sincos_grid" and m.width % 4:
        raise InputError(f"model.width={m.width} must be a multiple of 4 for positions='sincos_grid'")
    if m.width % 2:
        raise InputError(f"model.width={m.width} must be even: time features come in pairs")
    head_width = m.head_width or m.width // m.num_heads
    if m.rotary and has_attention(m) and head_width < 6:
        raise InputError(
            f"model.rotary=True turns pairs of channels on three axes, and heads of {head_width} channels "
            "are too narrow: give at least 6, by model.num_heads or model.head_width, or set "
            "model.rotary=False"
        )
    if m.window and m.mixer == "attention" and m.frame_causal:
        raise InputError(
            f"model.window={m.window} with model.mixer='attention' and model.frame_causal=True: windows stay "
            "within a frame, and nothing would see the frames before; set model.mixer to 'hybrid', or "
            "model.window to 0"
        )
    if not m.reads or not set(m.reads) <= set(READS) or len(set(m.reads)) < len(m.reads):
        raise InputError(f"model.reads={m.reads} must be some of {', '.join(READS)}, each once")
    if m.reads != ("all",) and not (has_pom and m.frame_causal):
        raise InputError(
            f"model.reads={m.reads} tells a frame's own tokens from those before, which is of PoM with "
            "model.frame_causal=True: set it, or leave reads at ('all',)"
        )
    if m.past_frames and m.past_frames >= m.frames // m.frame_patch:
        raise InputError(
            f"model.past_frames={m.past_frames} must be less than the {m.frames // m.frame_patch} frames of "
            "patches of a clip: no frame has so many before it"
        )
    if m.past_frames and not m.frame_causal:
        raise InputError(
            f"model.past_frames={m.past_frames} are frames before a token's own: set "
            "model.frame_causal=True, or leave it 0"
        )
    if m.vocabulary == 1:
        raise InputError("model.vocabulary=1 has no word but none: give at least 2, or 0 for embedded texts")


def check_call(m: Any, x: jax.Array, t: jax.Array, text: Any, states: Any, drafts: int) -> None:
    """Raises an InputError unless the inputs of a call fit each other and the model."""
    if x.ndim != 5 or x.shape[-1] != m.channels or 0 in x.shape:
        raise InputError(f"clips must be [B, T, H, W, {m.channels}] (channels last), got {x.shape}")
    sizes = {"frames": m.frame_patch, "rows": m.patch_size, "columns": m.patch_size}
    for (what, patch), size in zip(sizes.items(), x.shape[1:4], strict=True):
        if size % patch:
            raise InputError(
                f"clips of {x.shape[1]} frames of {x.shape[2]} x {x.shape[3]}: {size} {what} do not divide "
                f"into patches of {patch}; crop or pad them to a multiple"
            )
    frames = x.shape[1] // m.frame_patch
    if t.shape not in ((len(x),), (len(x), frames)):
        raise InputError(
            f"t must be [B] = [{len(x)}], a time for each clip, or [B, T / frame_patch] = "
            f"[{len(x)}, {frames}], one for each frame of patches; got {t.shape}"
        )
    if drafts and (drafts < 0 or frames % (1 + drafts) or t.ndim == 1 or states is not None):
        raise InputError(
            f"drafts={drafts} needs x of (1 + drafts) T frames of patches, a clip and its drafts, t [B, "
            f"(1 + drafts) T], and no states; got {frames} frames, t {t.shape}"
            + ("" if states is None else " and states")
        )
    if (states is not None or drafts) and not m.frame_causal:
        raise InputError(
            "states are carried from frame to frame and drafts read those before: they need frame_causal=True"
        )
    if states is not None and not hasattr(states, "frames"):
        raise InputError("states must be those of init_states(batch, (height, width)), or what a call left")
    past = (m.past_frames, len(x), *x.shape[2:4], m.frame_patch * m.channels)
    if states is not None and m.past_frames and states.frames.shape != past:
        raise InputError(
            f"the states carry frames of shape {states.frames.shape}, and clips {x.shape} follow frames "
            f"{past}: make states with init_states(batch, (height, width))"
        )
    _check_text(m, len(x), text)


def _check_text(m: Any, batch: int, text: Any) -> None:
    if not (hasattr(text, "tokens") and hasattr(text, "mask")):
        raise InputError(f"text is a {type(text).__name__}: give models.Text(tokens, mask)")
    tokens, mask = text.tokens, text.mask
    shape = (batch, tokens.shape[1]) if tokens.ndim > 1 else None
    if m.vocabulary:
        if tokens.ndim != 2 or tokens.shape != shape or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise InputError(
                f"text.tokens must be [B, M] = [{batch}, at most {m.text_length}] integers, words by number; "
                f"got {tokens.dtype} {tokens.shape}"
            )
    elif tokens.ndim != 3 or tokens.shape != (*(shape or ()), m.text_width):
        raise InputError(
            f"text.tokens must be [B, M, {m.text_width}] embeddings of the {batch} texts, got {tokens.shape}"
        )
    if tokens.shape[1] > m.text_length and m.vocabulary:
        raise InputError(
            f"a text of {tokens.shape[1]} tokens is longer than text_length = {m.text_length}: shorten it"
        )
    if mask.shape != shape:
        raise InputError(f"text.mask must be [B, M] = {shape}, one weight a token, got {mask.shape}")
