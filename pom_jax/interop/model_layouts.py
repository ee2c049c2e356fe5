"""Where each tensor of the authors' models, and of facebookresearch's, goes: one table a model.

| layout | whose | our fields |
|---|---|---|
| dih | HoMM's `ClassConditionalDiH` | `mixer="pom"`, `positions="sincos"`, see `fixed` |
| dihpp | HoMM's `ClassConditionalDiHpp` | the same with `positions="learned"` and registers |
| homm_dit | HoMM's `ClassConditionalDiT` | `mixer="attention"`, `positions="sincos"`, see `fixed` |
| dit, sit | `DiT` and `SiT` of facebookresearch | `mixer="attention"`, `positions="dit"` |
| text_video | HoMM's `TextVideoDiH` (branch `text2video`) | a `Polymorpher` with `order="text_first"` |

A path of ours may hold numbers: after `blocks` the layer, at the end which of the vectors of a modulation.
`tree` and `leaves` translate these to and from the stacked arrays of the parameters.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax import models
from pom_jax.interop import layouts
from pom_jax.interop.layouts import Entry, Place, Sizes
from pom_jax.nn.embeddings import DIT_TIME_FEATURES, dit_positions, time_frequencies

PLAIN: dict[str, Any] = {
    "gate_heads": 1,
    "groups": 1,
    "rotary": False,
    "phase_periods": (),
    "attention_every": 0,
    "head_width": 0,
    "window": 0,
    "clamp": 0.0,
}
_HOMM = PLAIN | {"positions": "sincos", "time_embedding": "homm", "activation": "gelu"}
_POM = {"mixer": "pom", "form": "product"}
_ATTENTION = {"mixer": "attention", "unit_gates": False, "registers": 0}
_VIDEO = PLAIN | {"vocabulary": 0, "time_token": False, "pooled_text": False, "past_frames": 0}
_VIDEO |= {"reads": ("all",), "order": "text_first", "positions": "sincos_phase"}
_FACEBOOK = PLAIN | _ATTENTION | {"positions": "dit", "activation": "gelu_tanh"}

# The fields that are the same in every model of a layout; the others are sizes, or how the model is computed.
FIXED: dict[str, dict[str, Any]] = {
    "dih": _HOMM | _POM | {"registers": 0},
    "dihpp": _HOMM | _POM | {"positions": "learned", "clamp": 255.0},
    "homm_dit": _HOMM | _ATTENTION,
    "dit": _FACEBOOK | {"time_embedding": "dit", "n_timesteps": 1000},
    "sit": _FACEBOOK | {"time_embedding": "sit", "n_timesteps": 1},
    "text_video": _VIDEO | _POM,
}
WHOSE = {
    "dih": "HoMM's DiH",
    "dihpp": "HoMM's DiH++",
    "homm_dit": "HoMM's DiT",
    "dit": "facebookresearch's DiT",
    "sit": "facebookresearch's SiT",
    "text_video": "HoMM's TextVideoDiH",
}
FACEBOOK = ("dit", "sit")
VIDEO = "text_video"
# Each model has one of these, HoMM's for images, facebookresearch's and HoMM's for video, behind what its
# wrappers add.
MARKS = ("in_conv.weight", "x_embedder.proj.weight", "text_emb.weight")
# What the files hold though it follows from the sizes.
CONSTANTS = {layout: "pos_embed" if layout in FACEBOOK else "freqs" for layout in FIXED}


class PatchEntry(Entry):
    """A convolution [D, C, K, K] over patches, as the matrix [K K C, D] of ours."""

    def to_ours(self, rows: Any) -> Any:
        return rows.transpose(2, 3, 1, 0).reshape(self.shape)

    def to_theirs(self, array: Any) -> Any:
        width, channels, side, _ = self.rows
        return array.reshape(side, side, channels, width).transpose(3, 2, 0, 1)


class NegatedEntry(Entry):
    """SiT's velocity runs from noise to data, ours from data to noise."""

    def to_ours(self, rows: Any) -> Any:
        return -super().to_ours(rows)

    def to_theirs(self, array: Any) -> Any:
        return -super().to_theirs(array)


class LoweredEntry(Entry):
    """The bias of a gate g that the authors write 1 + (g - 1): in float64, which holds both exactly.

    Exactly, unless g is below 2^-29 and not 0: then 1e-16 are lost. Torch rounds it when it loads.
    """

    def to_ours(self, rows: Any) -> Any:
        return (super().to_ours(rows).astype(np.float64) + 1).astype(np.float32)

    def to_theirs(self, array: Any) -> Any:
        return super().to_theirs(array).astype(np.float64) - 1


def fixed(layout: str, upscale: bool) -> dict[str, Any]:
    """`FIXED`, in HoMM's first code or in its branch `upscale`, which no tensor tells apart."""
    later = {"positions": "sincos_phase"} if upscale and FIXED[layout]["positions"] == "sincos" else {}
    return FIXED[layout] | later


def entries(layout: str, m: models.Model) -> tuple[Entry, ...]:
    """The table of a model, without what is `computed`."""
    facebook = layout in FACEBOOK
    table = _around_blocks(layout, m)
    for layer in range(m.depth):
        for entry in block_entries(layout, m):
            name = f"{'blocks' if facebook else 'layers'}.{layer}.{entry.theirs}"
            table.append(dataclasses.replace(entry, ours=("blocks", layer, *entry.ours), theirs=name))
    return tuple(table)


def block_entries(layout: str, m: models.Model) -> list[Entry]:
    """The table of one of its blocks alone."""
    if isinstance(m, models.Polymorpher):
        return _video_block(m)
    return _facebook_block(m) if layout in FACEBOOK else _homm_block(m)


def _around_blocks(layout: str, m: models.Model) -> list[Entry]:
    if isinstance(m, models.Polymorpher):
        return _video(m)
    return _facebook(m, layout) if layout in FACEBOOK else _homm(m)


def computed(layout: str, m: models.Model) -> dict[str, np.ndarray]:
    """The constants of a model by their names, float32; theirs differ in the last bits."""
    if layout in FACEBOOK and isinstance(m, models.DiPoM):
        side = m.image_size // m.patch_size
        table = np.asarray(dit_positions(side, side, m.width, side)).reshape(1, side**2, m.width)
    else:
        table = time_frequencies(m.width, m.n_timesteps)
    return {CONSTANTS[layout]: table}


def tree(tensors: Mapping[str, Any], table: Sequence[Entry]) -> dict[str, Any]:
    """Our parameters, from tensors of the shapes of the table; gradients pass through."""
    return _stacked(layouts.to_ours(tensors, table))


def leaves(params: Mapping[str, Any], table: Sequence[Entry]) -> dict[Place, Any]:
    """The pieces of our parameters that `layouts.to_theirs` takes; with it the inverse of `tree`."""
    found = {}
    for entry in table:
        node: Any = params
        for step in entry.ours:
            node = node[step] if isinstance(step, str) else node
        if entry.ours[0] == "blocks":
            node = node[entry.ours[1]]
        found[entry.ours] = node[..., entry.ours[-1], :] if isinstance(entry.ours[-1], int) else node
    return found


def _stacked(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    below = {step: _stacked(child) for step, child in node.items()}
    if not all(isinstance(step, int) for step in below):
        return below
    parts = [below[i] for i in range(len(below))]
    axis = 0 if isinstance(parts[0], Mapping) else -2

    def stack(*arrays: Any) -> Any:
        return (np if isinstance(arrays[0], np.ndarray) else jnp).stack(arrays, axis)

    return jax.tree.map(stack, *parts)


def _linear(ours: Place, theirs: str, inputs: int, outputs: int, kind: type[Entry] = Entry) -> list[Entry]:
    """A matrix and its bias under one name."""
    shape = (outputs, inputs)
    return [
        kind((*ours, "kernel"), shape[::-1], f"{theirs}.weight", shape, 1),
        kind((*ours, "bias"), shape[:1], f"{theirs}.bias", shape[:1]),
    ]


def _modulation(theirs: str, width: int, order: Sequence[int], bias: type[Entry] = Entry) -> list[Entry]:
    """The vectors of our modulation that one matrix of theirs holds, from the top."""
    kernel, shape = (width, width), (width,)
    weights = [Entry(("modulation", "kernel", i), kernel, f"{theirs}.weight", kernel, 1) for i in order]
    return weights + [bias(("modulation", "bias", i), shape, f"{theirs}.bias", shape) for i in order]


def _attention(theirs: str, width: int, heads: int) -> list[Entry]:
    """timm's attention, whose one matrix holds queries, keys and values."""
    inner, table = (heads, width // heads), []
    for name in ("query", "key", "value"):
        path = ("mixer", name)
        table += [
            Entry((*path, "kernel"), (width, *inner), f"{theirs}.qkv.weight", (width, width), 1),
            Entry((*path, "bias"), inner, f"{theirs}.qkv.bias", (width,)),
        ]
    out = Entry(("mixer", "out", "kernel"), (*inner, width), f"{theirs}.proj.weight", (width, width), 2)
    return [*table, out, Entry(("mixer", "out", "bias"), (width,), f"{theirs}.proj.bias", (width,))]


def _mixer(m: models.Model, ours: str, theirs: str) -> list[Entry]:
    """A `HoM` of theirs."""
    sizes = Sizes(m.width, m.expansion * m.width, m.degree, biased=True)
    return [
        dataclasses.replace(entry, ours=(ours, *entry.ours), theirs=f"{theirs}.{entry.theirs}")
        for entry in layouts.entries("product", sizes)
    ]


def _homm(m: models.DiPoM) -> list[Entry]:
    patch, pixels = (m.width, m.channels, m.patch_size, m.patch_size), m.patch_size**2 * m.channels
    classes = (m.num_classes + 1, m.width)
    table = [
        PatchEntry(("patch_embedding", "kernel"), (pixels, m.width), "in_conv.weight", patch),
        Entry(("patch_embedding", "bias"), (m.width,), "in_conv.bias", (m.width,)),
        Entry(("class_embedding", "table"), classes, "classes_emb.weight", classes),
        *_linear(("time_embedding", "hidden"), "time_emb.0", m.width, 4 * m.width),
        *_linear(("time_embedding", "out"), "time_emb.2", 4 * m.width, m.width),
        *_modulation("out_mod.1", m.width, (0, 1)),
        *_linear(("out",), "out_proj", m.width, pixels),
    ]
    if m.positions == "learned":
        side = m.image_size // m.patch_size
        grid, flat = (side, side, m.width), (1, side**2, m.width)
        table.append(Entry(("positions",), grid, "pos_emb", flat))
        if m.registers:
            first, row = (m.registers, m.width), (1, m.registers, m.width)
            table.append(Entry(("registers",), first, "registers", row))
            table.append(Entry(("condition_registers",), first, "cond_pos_emb", row, axis=1))
        table.append(Entry(("condition_positions",), grid, "cond_pos_emb", flat, axis=1))
    return table


def _homm_block(m: models.DiPoM) -> list[Entry]:
    attention = m.mixer == "attention"
    mixer = _attention("mha", m.width, m.num_heads) if attention else _mixer(m, "mixer", "hom")
    hidden = m.ffn_expansion * m.width
    lowered = m.mixer == "pom" and not m.unit_gates
    return [
        *mixer,
        *_linear(("feed_forward", "hidden"), "ffw.0", m.width, hidden),
        *_linear(("feed_forward", "out"), "ffw.2", hidden, m.width),
        *_modulation("cond_mlp.1", m.width, (0, 1, 3, 4)),
        *_modulation("gate_mlp.1", m.width, (2, 5), LoweredEntry if lowered else Entry),
    ]


def _facebook(m: models.DiPoM, layout: str) -> list[Entry]:
    patch, pixels = (m.width, m.channels, m.patch_size, m.patch_size), m.patch_size**2 * m.channels
    classes = (m.num_classes + 1, m.width)
    out = NegatedEntry if layout == "sit" else Entry
    return [
        PatchEntry(("patch_embedding", "kernel"), (pixels, m.width), "x_embedder.proj.weight", patch),
        Entry(("patch_embedding", "bias"), (m.width,), "x_embedder.proj.bias", (m.width,)),
        Entry(("class_embedding", "table"), classes, "y_embedder.embedding_table.weight", classes),
        *_linear(("time_embedding", "hidden"), "t_embedder.mlp.0", DIT_TIME_FEATURES, m.width),
        *_linear(("time_embedding", "out"), "t_embedder.mlp.2", m.width, m.width),
        *_modulation("final_layer.adaLN_modulation.1", m.width, (1, 0)),
        *_linear(("out",), "final_layer.linear", m.width, pixels, out),
    ]


def _facebook_block(m: models.DiPoM) -> list[Entry]:
    hidden = m.ffn_expansion * m.width
    return [
        *_attention("attn", m.width, m.num_heads),
        *_linear(("feed_forward", "hidden"), "mlp.fc1", m.width, hidden),
        *_linear(("feed_forward", "out"), "mlp.fc2", hidden, m.width),
        *_modulation("adaLN_modulation.1", m.width, (1, 0, 2, 4, 3, 5)),
    ]


def _video(m: models.Polymorpher) -> list[Entry]:
    pixels = m.frame_patch * m.patch_size**2 * m.channels
    return [
        *_linear(("patch_embedding",), "in_proj", pixels, m.width),
        *_linear(("text_embedding",), "text_emb", m.text_width, m.width),
        *_linear(("time_embedding", "hidden"), "time_emb.0", m.width, 4 * m.width),
        *_linear(("time_embedding", "out"), "time_emb.2", 4 * m.width, m.width),
        *_modulation("out_mod.1", m.width, (0, 1)),
        *_linear(("out",), "out_proj", m.width, pixels),
    ]


def _video_block(m: models.Polymorpher) -> list[Entry]:
    hidden = m.ffn_expansion * m.width
    return [
        *_mixer(m, "text_mixer", "c_hom"),
        *_mixer(m, "mixer", "hom"),
        *_linear(("feed_forward", "hidden"), "ffw.0", m.width, hidden),
        *_linear(("feed_forward", "out"), "ffw.2", hidden, m.width),
        *_modulation("cond_mlp.1", m.width, (0, 1, 2, 3, 5, 6, 8, 9)),
        *_modulation("gate_mlp.1", m.width, (4, 7, 10), Entry if m.unit_gates else LoweredEntry),
    ]
