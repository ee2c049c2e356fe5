"""Blocks and whole image models, with their gradients; time features; initial values."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax import models, nn
from pom_jax.interop import export_model, import_model, model_layouts
from pom_jax.nn.blocks import ModulatedBlock
from pom_jax.nn.embeddings import TimeEmbedding, time_features, time_frequencies
from tests.golden import torch_layout
from tests.golden.case import Case, Check, Findings, LeftOut, Tensors, apply, compare_module, unit_time

KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default


def block(case: Case) -> Findings:
    """`DiHBlock` and `DiTBlock`; the latter's condition comes without the token axis."""
    c = case.meta["constructor"]
    model = models.DiPoM(4, 1, 1, 1, c["dim"], 1, ffn_expansion=c.get("ffw_expand", 4))
    if "n_heads" in c:
        mixer = functools.partial(nn.MultiHeadAttention, c["n_heads"])
        model = model.clone(mixer="attention", num_heads=c["n_heads"])
    else:
        mixer = functools.partial(nn.PoM, degree=c["order"], expansion=c["order_expand"])
        model = model.clone(degree=c["order"], expansion=c["order_expand"], unit_gates=True)
    module = ModulatedBlock(mixer, model.ffn_expansion, unit_gates=model.unit_gates)
    table = model_layouts.block_entries("homm_dit" if "n_heads" in c else "dih", model)

    def layer(p: Tensors, x: Tensors) -> Tensors:
        condition = x["c"] if x["c"].ndim == 3 else x["c"][:, None]
        return {"y": apply(module, model_layouts.tree(p, table), x["x"], condition)}

    return compare_module(case, layer)


def image_model_of(case: Case) -> tuple[models.DiPoM, Callable[[Tensors], Any]]:
    """What the importer makes of a case's tensors: the model, and how they become its parameters."""
    c = case.meta["constructor"]
    told = {"image_size": c["im_size"], "degree": c.get("order"), "num_heads": c.get("n_heads")}
    found = import_model(case.group("param"), **told)
    table = model_layouts.entries(found.layout, found.model)
    return found.model, lambda p: model_layouts.tree(p, table)


def image_model(case: Case) -> Findings:
    """`ClassConditionalDiH`, `DiHpp` at any size, and `DiT`."""
    model, tree = image_model_of(case)
    t = unit_time(case.arrays["in/time"], model.n_timesteps)
    labels = jnp.asarray(case.arrays["in/cls"], jnp.int32)

    def network(p: Tensors, x: Tensors) -> Tensors:
        y = apply(model, tree(p), x["img"].transpose(0, 2, 3, 1), t, labels)
        return {"y": y.transpose(0, 3, 1, 2)}

    return compare_module(case, network)


def time_embedding(case: Case) -> Findings:
    """Time features and the network behind them."""
    c = case.meta["constructor"]
    p = {k: jnp.asarray(v) for k, v in case.group("param").items()}
    tree = {"hidden": torch_layout.linear(p, "time_emb.0"), "out": torch_layout.linear(p, "time_emb.2")}
    frequencies = time_frequencies(c["dim"], c["n_timesteps"])
    yield Check("out/frequencies", frequencies, p["freqs"], case.tolerance("out"))
    # Their own frequencies: the last bit of one turns the angle at t = 1000 by 1e-4.
    features = time_features(jnp.asarray(case.arrays["in/t"]), p["freqs"])
    module = TimeEmbedding(c["dim"], c["n_timesteps"])
    t = unit_time(case.arrays["in/t"], c["n_timesteps"])
    yield Check("out/features", features, case.arrays["out/features"], case.tolerance("out"))
    embedded = apply(module, tree, t)
    yield Check("out/embedding", embedded, case.arrays["out/embedding"], case.tolerance("out"))


def initial_values(case: Case) -> Findings:
    """Distributions of fresh parameters: their spread, and whether they are uniform or normal.

    Both sides are one draw of n values: two standard deviations differ by about 1 / sqrt(n) of themselves,
    and six times that is allowed.
    """
    constructors = case.meta["constructors"]
    for family in ("DiH", "DiHpp", "DiT"):
        ours = _fresh_in_their_layout(constructors[family])
        yield from _compare_statistics(family, ours, case.meta["stats"][family])
    yield LeftOut("HoM", "a layer alone starts as in the authors' models (Xavier), not with torch's defaults")
    for family, groups in (("PoM_g1", 1), ("PoM_g2", 2)):
        c = constructors[family]
        module = nn.PoM("power", c["degree"], c["expand"], c["n_sel_heads"], groups)
        tree = dict(jax.jit(module.init)(KEY, jnp.zeros((1, 2, c["dim"])))["params"])
        stats = case.meta["stats"][family]
        ours: dict[str, Any] = {"po_coeff": tree["coefficients"]}
        if groups > 1:
            ours["po_proj.weight"] = tree["features"]["kernel"]
        else:
            ours["se_bias"] = tree["gate"]["bias"]
        yield from _compare_statistics(family, ours, {k: stats[k] for k in ours})
    yield LeftOut("PoM", "the other matrices alone start Xavier uniform, not with torch's defaults")


def _fresh_in_their_layout(c: dict[str, Any]) -> dict[str, np.ndarray]:
    """New parameters of our model for the constructor arguments of `DiH`, `DiHpp` or `DiT`, exported."""
    model = models.DiPoM(
        c["im_size"], c["input_dim"], c["n_classes"], c["kernel_size"], c["dim"], c["n_layers"]
    ).clone(n_timesteps=c["n_timesteps"], ffn_expansion=c.get("ffw_expand", 4))
    if "n_heads" in c:
        model = model.clone(mixer="attention", num_heads=c["n_heads"])
    else:
        model = model.clone(degree=c["order"], expansion=c["order_expand"], unit_gates=True)
    if "n_registers" in c:
        model = model.clone(registers=c["n_registers"], positions="learned", clamp=255.0)
    # Compiling is all the time this takes.
    init = jax.jit(models.init, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
    return export_model(model, init(model, KEY))


def _compare_statistics(family: str, ours: dict[str, Any], stats: dict[str, dict[str, Any]]) -> Findings:
    for name, official in stats.items():
        if name == "freqs":
            continue
        values = np.asarray(ours[name])
        label = f"{family}/{name}"
        if official["std"] == 0:
            yield Check(f"{label} value", values, np.full(values.shape, official["mean"]), 1e-6)
            continue
        yield Check(f"{label} spread", values.std(), official["std"], 6 / np.sqrt(values.size))
        if values.size >= 200:
            # The largest value over the spread is near 1.7 for uniform values, near 3 for normal ones.
            reach = max(official["max"], -official["min"]) / official["std"]
            ours_reach = np.abs(values).max() / values.std()
            yield Check(f"{label} uniform", float(ours_reach < 2.1), float(reach < 2.1), 0.0)
