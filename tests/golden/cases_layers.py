"""Blocks and whole image models, with their gradients; time features; initial values."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax import models, nn
from pom_jax.nn.blocks import ModulatedBlock
from pom_jax.nn.embeddings import TimeEmbedding, time_features, time_frequencies
from tests.golden import torch_layout
from tests.golden.case import Case, Check, Findings, LeftOut, Tensors, apply, compare_module, unit_time

KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default


def block(case: Case) -> Findings:
    """`DiHBlock` and `DiTBlock`; the latter's condition comes without the token axis."""
    c = case.meta["constructor"]
    if "n_heads" in c:
        mixer = functools.partial(nn.MultiHeadAttention, c["n_heads"])
    else:
        mixer = functools.partial(nn.PoM, degree=c["order"], expansion=c["order_expand"])
    module = ModulatedBlock(mixer, c.get("ffw_expand", 4))

    def layer(p: Tensors, x: Tensors) -> Tensors:
        condition = x["c"] if x["c"].ndim == 3 else x["c"][:, None]
        return {"y": apply(module, torch_layout.modulated_block(p, c), x["x"], condition)}

    return compare_module(case, layer)


def image_model_of(constructor: dict[str, Any]) -> models.DiPoM:
    """Our model for the constructor arguments of `ClassConditionalDiH`, `DiHpp` or `DiT`."""
    c = constructor
    config = {
        "image_size": c["im_size"],
        "channels": c["input_dim"],
        "num_classes": c["n_classes"],
        "patch_size": c["kernel_size"],
        "width": c["dim"],
        "depth": c["n_layers"],
        "n_timesteps": c["n_timesteps"],
        "ffn_expansion": c.get("ffw_expand", 4),
    }
    if "n_heads" in c:
        return models.build(config | {"mixer": "attention", "num_heads": c["n_heads"]})
    config |= {"degree": c["order"], "expansion": c["order_expand"]}
    if "n_registers" in c:
        config |= {"registers": c["n_registers"], "positions": "learned", "clamp": 255.0}
    return models.build(config)


def image_model(case: Case) -> Findings:
    """`ClassConditionalDiH`, `DiHpp` at any size, and `DiT`."""
    c = case.meta["constructor"]
    model = image_model_of(c)
    t = unit_time(case.arrays["in/time"], c["n_timesteps"])
    labels = jnp.asarray(case.arrays["in/cls"], jnp.int32)

    def network(p: Tensors, x: Tensors) -> Tensors:
        images = x["img"].transpose(0, 2, 3, 1)
        y = apply(model, torch_layout.image_model(p, c), images, t, labels)
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
        model = image_model_of(constructors[family])
        zeros = {k: jnp.zeros(tuple(v["shape"])) for k, v in case.meta["stats"][family].items()}
        ours = _fresh_in_their_layout(model, constructors[family], zeros)
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


def _fresh_in_their_layout(model: models.DiPoM, constructor: dict[str, Any], zeros: Tensors) -> Tensors:
    """New parameters through the inverse of `torch_layout.image_model`, a permutation but for the offset."""

    # Compiling is all the time this takes.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def draw(key: jax.Array, zeros: Tensors) -> Tensors:
        offset, pull = jax.vjp(lambda p: torch_layout.image_model(p, constructor), zeros)
        return pull(jax.tree.map(jnp.subtract, models.init(model, key), offset))[0]

    return draw(KEY, zeros)


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
