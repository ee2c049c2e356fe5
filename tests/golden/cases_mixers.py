"""The mixers of both papers, causal, streamed and with rotary positions, with their gradients.

The layer is what `pom_jax.interop` makes of the authors' tensors.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax import nn, ops
from pom_jax.interop import import_layer
from pom_jax.nn.blocks import PolymorpherLayer
from tests.golden import torch_layout
from tests.golden.case import Case, Check, Findings, Tensors, apply, compare_module

# What the authors' arguments are called here.
ARGUMENTS = {
    "mask": "mask",
    "positions": "positions",
    "positions_hw": "positions",
    "ctx_positions": "context_positions",
    "ctx_positions_hw": "context_positions",
}


def product_mixer(case: Case) -> Findings:
    """`HoM`, alone or in its residual layer `HoMLayer`."""
    c = case.meta["constructor"]
    below = "hom." if "ffw_expand" in c else ""
    found, _ = import_layer(case.group("param"), degree=c["order"], prefix=below[:-1] or None)
    mixer = functools.partial(nn.PoM, degree=found.degree, expansion=found.expansion, use_bias=found.use_bias)

    def layer(p: Tensors, x: Tensors) -> Tensors:
        module, tree = mixer(), torch_layout.product_mixer(torch_layout.below(p, below), c["order"])
        if below:
            hidden, out = torch_layout.linear(p, "ffw.1"), torch_layout.linear(p, "ffw.3")
            module = PolymorpherLayer(mixer, c["ffw_expand"])
            tree = {"mixer": tree, "feed_forward": {"hidden": hidden, "out": out}}
        return {"y": apply(module, tree, x["xq"], x.get("xc"), mask=x.get("mask"))}

    return compare_module(case, layer)


def power_mixer(case: Case) -> Findings:
    """`PoM` and `PoMRoPE` of the second paper, all tokens in one call."""
    module, tree = _power(case)
    causal = case.name.endswith("_causal")  # one of them forgets it in its call

    def layer(p: Tensors, x: Tensors) -> Tensors:
        options = {ours: x[theirs] for theirs, ours in ARGUMENTS.items() if theirs in x}
        if "xc" in x and "positions" in options:  # theirs count the context from 0 if they are told nothing
            options.setdefault("context_positions", jnp.arange(x["xc"].shape[1]))
        return {"y": apply(module, tree(p), x["xq"], x.get("xc"), causal=causal, **options)}

    return compare_module(case, layer)


def streamed_mixer(case: Case) -> Findings:
    """`state_forward`, frame by frame with its state, which counts frames."""
    module, tree = _power(case)
    # `PoMRoPE` inherits it as it is, and so does not rotate there.
    module = module.clone(count="frames", rotary=None)
    inputs = case.group("in")

    def stream(p: Tensors, x: Tensors) -> Tensors:
        out: Tensors = {}
        state: Any = module.init_state(*inputs["frame0"].shape[::2])
        for i in range(sum(name.startswith("frame") for name in inputs)):
            result: Any = module.apply({"params": tree(p)}, x[f"frame{i}"], x.get(f"ctx{i}"), state=state)
            y, state = result
            out |= {f"frame{i}": y, f"state_h{i}": ops.state_mean(state), f"state_n{i}": state.count[0, 0]}
        return out

    return compare_module(case, stream)


def _power(case: Case) -> tuple[nn.PoM, Callable[[Tensors], dict[str, Any]]]:
    """The layer, and how the authors' tensors become its parameters, which gradients pass through."""
    groups = case.meta["constructor"]["n_groups"]
    return import_layer(case.group("param"))[0], lambda p: torch_layout.power_mixer(p, groups)


def activation(case: Case) -> Findings:
    """The clamped leaky ReLU and its slope at the special points."""
    x = jnp.asarray(case.arrays["in/x"])
    y = ops.clamped_leaky_relu(x)
    slope = jax.grad(lambda x: ops.clamped_leaky_relu(x).sum())(x)
    yield Check("out/y", y, case.arrays["out/y"], case.tolerance("out"))
    yield Check("grad/in/x", slope, case.arrays["grad/in/x"], case.tolerance("out"))


def rotary_tables(case: Case) -> Findings:
    """The tables of frequencies, and the two rotations by them."""
    c, official = case.meta["call"], case.group("out")
    width = c["dim"]
    line = jnp.arange(c["max_seq_len"])[:, None]
    for base, suffix in ((c["base"], ""), (500.0, "_base500")):
        for part, table in zip(("cos", "sin"), nn.Rotary(1, base).tables(line, width), strict=True):
            name = f"freqs_{part}{suffix}"
            # Theirs have a column a pair of channels, ours one a channel.
            yield Check(f"out/{name}", table, np.tile(official[name], (1, 2)), case.tolerance("out"))
    grid = nn.Rotary(2, c["base"])
    for axis, name in enumerate(("row", "col")):
        places = np.zeros((c[f"max_{'hw'[axis]}"], 2))
        places[:, axis] = np.arange(len(places))
        for part, table in zip(("cos", "sin"), grid.tables(jnp.asarray(places), width), strict=True):
            ours = table.reshape(len(places), 2, -1)[:, axis]
            theirs = np.tile(official[f"{name}_{part}"], (1, 2))
            yield Check(f"out/{name}_{part}", ours, theirs, case.tolerance("out"))
    x = jnp.asarray(case.arrays["in/x"])
    for rotary, places in ((nn.Rotary(1, c["base"]), "positions"), (grid, "positions_hw")):
        given = jnp.asarray(case.arrays[f"in/{places}"]).reshape(-1, rotary.axes)
        name = f"apply_rope_{rotary.axes}d"
        turned = rotary.rotate(x, rotary.tables(given, width))
        yield Check(f"out/{name}", turned, official[name], case.tolerance("out"))
