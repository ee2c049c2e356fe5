"""The authors' tensors, by their names, as our parameters. Linear apart from the gates' offset."""

from typing import Any

import jax
import jax.numpy as jnp

from pom_jax.interop import layouts

Tensors = dict[str, jax.Array]
Tree = dict[str, Any]


def below(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names start with `prefix`, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def linear(p: Tensors, name: str) -> Tree:
    """A torch Linear [out, in] as {kernel [in, out], bias [out]}."""
    tree = {"kernel": p[f"{name}.weight"].T}
    return tree | {"bias": p[f"{name}.bias"]} if f"{name}.bias" in p else tree


def mixer(p: Tensors, layout: str, degree: int | None = None) -> Tree:
    """One of the authors' mixers -> `PoM`, in the layout that `pom_jax.interop` calls so."""
    return layouts.to_ours(p, layouts.entries(layout, layouts.measure(layout, p, degree)))


def product_mixer(p: Tensors, degree: int) -> Tree:
    """`HoM` -> `PoM(form="product")`."""
    return mixer(p, "product", degree)


def power_mixer(p: Tensors, groups: int) -> Tree:
    """`PoM` of the second paper -> `PoM(form="power")`."""
    return mixer(p, "grouped" if groups > 1 else "fused")


def attention(p: Tensors, heads: int) -> Tree:
    """timm's `Attention` -> `MultiHeadAttention`."""
    fused = linear(p, "qkv")
    width = fused["kernel"].shape[0]
    kernels = fused["kernel"].reshape(width, 3, heads, -1)
    biases = fused["bias"].reshape(3, heads, -1)
    tree = {
        name: {"kernel": kernels[:, i], "bias": biases[i]} for i, name in enumerate(("query", "key", "value"))
    }
    out = linear(p, "proj")
    return tree | {"out": {"kernel": out["kernel"].reshape(heads, -1, width), "bias": out["bias"]}}


def mixer_of_block(p: Tensors, constructor: dict[str, Any]) -> Tree:
    """The mixer of a `DiHBlock` or `DiTBlock`."""
    if "n_heads" in constructor:
        return attention(below(p, "mha."), constructor["n_heads"])
    return product_mixer(below(p, "hom."), constructor["order"])


def modulated_block(p: Tensors, constructor: dict[str, Any]) -> Tree:
    """`DiHBlock`, `DiTBlock` -> `ModulatedBlock`: two modulation heads become one, 1 + g becomes g."""
    condition, gates = linear(p, "cond_mlp.1"), linear(p, "gate_mlp.1")
    if "n_heads" not in constructor:
        gates["bias"] = gates["bias"] + 1

    def join(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.reshape(*a.shape[:-1], 4, -1), b.reshape(*b.shape[:-1], 2, -1)
        parts = [a[..., :2, :], b[..., :1, :], a[..., 2:, :], b[..., 1:, :]]
        return jnp.concatenate(parts, axis=-2)

    return {
        "mixer": mixer_of_block(p, constructor),
        "feed_forward": {"hidden": linear(p, "ffw.0"), "out": linear(p, "ffw.2")},
        "modulation": {name: join(condition[name], gates[name]) for name in ("kernel", "bias")},
    }


def image_model(p: Tensors, constructor: dict[str, Any]) -> Tree:
    """`ClassConditionalDiH`, `DiHpp` or `DiT` -> `DiPoM`."""
    width = constructor["dim"]
    blocks = [modulated_block(below(p, f"layers.{i}."), constructor) for i in range(constructor["n_layers"])]
    final = linear(p, "out_mod.1")
    patches = p["in_conv.weight"].transpose(2, 3, 1, 0).reshape(-1, width)
    tree: Tree = {
        "patch_embedding": {"kernel": patches, "bias": p["in_conv.bias"]},
        "time_embedding": {"hidden": linear(p, "time_emb.0"), "out": linear(p, "time_emb.2")},
        "class_embedding": {"table": p["classes_emb.weight"]},
        "blocks": jax.tree.map(lambda *layers: jnp.stack(layers), *blocks),
        "modulation": {k: v.reshape(*v.shape[:-1], 2, width) for k, v in final.items()},
        "out": linear(p, "out_proj"),
    }
    if "n_registers" in constructor:
        registers, native = constructor["n_registers"], constructor["im_size"] // constructor["kernel_size"]
        tree["registers"] = p["registers"][0]
        tree["positions"] = p["pos_emb"].reshape(native, native, width)
        tree["condition_registers"] = p["cond_pos_emb"][0, :registers]
        tree["condition_positions"] = p["cond_pos_emb"][0, registers:].reshape(native, native, width)
    return tree
