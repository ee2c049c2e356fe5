"""The text-to-video network: positions, a block with its gradients, the whole model."""

import dataclasses
import functools
from typing import Any

from pom_jax import models, nn
from pom_jax.interop import model_layouts
from pom_jax.nn.text_block import Given, TextBlock
from pom_jax.nn.video_embeddings import phased_frames
from tests.golden.case import Case, Check, Findings, Tensors, apply, compare_module, unit_time

LAYOUT = "text_video"


def positions(case: Case) -> Findings:
    """Waves in time and on both axes."""
    a = case.meta["args"]
    grid = (a["t"], a["h"], a["w"])
    ours = phased_frames(grid, grid, a["d"])[None]
    yield Check("out/emb", ours, case.arrays["out/emb"], case.tolerance("out"))


def block(case: Case) -> Findings:
    """`TextVideoDiHBlock`; the last text of the batch is a dropped caption."""
    m = model_of(case)
    mixer = functools.partial(nn.PoM, degree=m.degree, expansion=m.expansion)
    frame_tokens = case.meta["tokens_per_frame"] if m.frame_causal else 0
    module = TextBlock(mixer, mixer, frame_tokens, ffn_expansion=m.ffn_expansion, unit_gates=True)
    table = model_layouts.block_entries(LAYOUT, m)

    def layer(p: Tensors, x: Tensors) -> Tensors:
        given = Given(x["time_cond"], x["text"][:, None], x["text_mask"], None)
        return {"y": apply(module, model_layouts.tree(p, table), x["x"], given)}

    return compare_module(_in_the_usual_keys(case), layer)


def model(case: Case) -> Findings:
    """`TextVideoDiH`, whose clips are [B, C, T, H, W]."""
    m = model_of(case)
    table = model_layouts.entries(LAYOUT, m)
    t = unit_time(case.arrays["in/time"], m.n_timesteps)

    def network(p: Tensors, x: Tensors) -> Tensors:
        text = models.Text(x["text"], x["text_mask"])
        y = apply(m, model_layouts.tree(p, table), x["video"].transpose(0, 2, 3, 4, 1), t, text)
        return {"y": y.transpose(0, 4, 1, 2, 3)}

    return compare_module(case, network)


def model_of(case: Case) -> models.Polymorpher:
    """The network of the constructor's arguments; of a block's, one that has such blocks."""
    c = case.meta["ctor"]
    height, width = (int(side) for side in c.get("vid_size", "1x1").split("x"))
    sizes: dict[str, Any] = {
        "frames": c.get("vid_length", 1),
        "frame_height": height,
        "frame_width": width,
        "channels": c.get("input_dim", 1),
        "text_length": case.arrays["in/text"].shape[1],
        "text_width": c.get("text_dim", 1),
        "patch_size": c.get("kernel_s", 1),
        "frame_patch": c.get("kernel_t", 1),
        "width": c["dim"],
        "depth": c.get("n_layers", 1),
    }
    return models.Polymorpher(
        **sizes,
        degree=c["order"],
        expansion=c["order_expand"],
        ffn_expansion=c["ffw_expand"],
        n_timesteps=c.get("n_timesteps", 1000),
        frame_causal=case.name.endswith("blockcausal"),
        unit_gates=True,
    )


def _in_the_usual_keys(case: Case) -> Case:
    """The block's files call gradients and cotangent otherwise than the others do."""
    inputs = {"x": "in/x", "c": "in/text"}
    keys = {f"grad/{name}": f"grad/{inputs.get(name, f'param/{name}')}" for name in case.group("grad")}
    keys["in/cotangent"] = "in/cotangent/y"
    arrays = {keys.get(name, name): array for name, array in case.arrays.items()}
    told = {"trainable": list(case.group("param")), "inputs_with_grad": ["x", "text"]}
    return dataclasses.replace(case, meta=case.meta | told, arrays=arrays)
