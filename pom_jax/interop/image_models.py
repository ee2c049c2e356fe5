"""The tensors of the authors' image models and of facebookresearch's -> `DiPoM` and its parameters.

What is the same for video is here too, see `interop.video_models`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax import models
from pom_jax.errors import InputError, choose
from pom_jax.interop import layouts, model_layouts, model_sizes
from pom_jax.interop.arrays import to_numpy
from pom_jax.interop.model_layouts import CONSTANTS, FACEBOOK, MARKS, VIDEO, WHOSE
from pom_jax.interop.names import plain_names

PREFIXES = {"ema": ("ema.ema_model.", "ema."), "online": ("model.", "module.", "")}
OUTPUT = ("final_layer.linear.weight", "final_layer.linear.bias")  # of facebookresearch's networks
NATIVE = 32  # side of the latents of 256 pixels, which their first code is for
LISTED = 20  # lines of what does not fit
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model from elsewhere.

    Attributes:
        model: the network, `DiPoM` or `Polymorpher`; `model.clone(dtype=...)` computes in another dtype.
        fields: those of its fields that were told, by the tensors or by the caller.
        params: its parameters, nested dicts of float32.
        layout: whose it was, one of `model_layouts.WHOSE`.
        weights: "ema" or "online", which of a file's parameters these are.
        upscale: it is taken for one of HoMM's branch `upscale`.
    """

    model: Any
    fields: dict[str, Any]
    params: dict[str, Any]
    layout: str
    weights: str
    upscale: bool = False


def import_model(
    tensors: Mapping[str, Any],
    *,
    weights: str | None = None,
    objective: str | None = None,
    preset: str | None = None,
    image_size: int | None = None,
    degree: int | None = None,
    num_heads: int | None = None,
    drop_variance: bool = False,
    upscale: bool | None = None,
) -> Imported:
    """Makes a model of the tensors of a whole network; names and shapes tell what they can.

    Known are HoMM's `ClassConditionalDiH`, `DiHpp` and `DiT`, and `DiT` and `SiT` of facebookresearch. What
    Lightning, `ema_pytorch` and torch.compile put before the names is left out. HoMM's gates 1 + g stay
    such (`unit_gates`), so no number changes.

    Args:
        tensors: name -> array of numpy or JAX or torch tensor, floating-point numbers of any precision.
        weights: "ema" or "online"; by default the average where there is one.
        objective: "dit" or "sit" for tensors of facebookresearch, which look alike; HoMM's networks are the
            same for "flow" and "noise".
        preset: a name such as "DiPoM-XL/2", which tells degree and heads and has to fit the rest.
        image_size: side of the latents, where no table of positions tells it; else a check.
        degree: of HoMM's polynomials, whose shapes only tell degree times expansion.
        num_heads: of attention.
        drop_variance: leaves out the half of the output that predicts variances, which no sampler here reads.
        upscale: the model is of HoMM's branch `upscale`, where DiH and DiT have the positions `sincos_phase`
            and sampling shifts time by `resolution_shift`; no tensor tells. By default it is taken for one
            where the image is larger than 32, for that branch is how they go beyond 256 pixels.

    Returns:
        The model, its parameters, and what they were.

    Raises:
        InputError: no such model, or several; a size that has to be given, or is another; or in one message
            all names that are missing or left over, or all shapes that do not fit.
    """
    found, weights = select_weights(tensors, weights)
    layout = find_layout(found, objective)
    if layout == VIDEO:
        raise InputError(f"the tensors are of {WHOSE[layout]}: import_video_model makes a model of them")
    refuse(layout, wrong_tensors(found, layout))
    told = {"image_size": image_size, "degree": degree, "num_heads": num_heads}
    fields = model_sizes.fields(found, layout, told, preset)
    if layout in FACEBOOK:
        found = _without_variance(found, fields, drop_variance)
        if upscale:
            raise InputError(
                f"upscale = True is of HoMM's models, and the tensors are of {WHOSE[layout]}: leave it out"
            )
    elif upscale is None:
        upscale = fields["image_size"] > NATIVE
    fields |= model_layouts.fixed(layout, bool(upscale))
    return dataclasses.replace(converted(found, layout, fields, weights), upscale=bool(upscale))


def converted(found: Arrays, layout: str, fields: dict[str, Any], weights: str) -> Imported:
    """The model of these fields with these tensors; raises an InputError if their shapes do not fit."""
    model = models.build(fields)
    table, constants = model_layouts.entries(layout, model), model_layouts.computed(layout, model)
    wanted = layouts.shapes(table) | {name: array.shape for name, array in constants.items()}
    refuse(layout, _wrong_shapes(found, wanted))
    refuse(
        layout,
        (
            f"values of {n}: not as {WHOSE[layout]} computes them"
            for n, a in constants.items()
            if not model_sizes.agree(found[n], a)
        ),
    )
    # Copies: the tensors may belong to a model that goes on training.
    params = jax.tree.map(lambda a: jnp.array(a, jnp.float32), model_layouts.tree(found, table))
    return Imported(model, fields, params, layout, weights)


def select_weights(tensors: Mapping[str, Any], weights: str | None = None) -> tuple[Arrays, str]:
    """The tensors of one of the models of a file by their own names, and "ema" or "online".

    Raises:
        InputError: no model, or not those weights.
    """
    plain = plain_names(tensors)
    places = {}
    for kind, prefixes in PREFIXES.items():
        here = [p for p in prefixes if any(p + mark in plain for mark in MARKS)]
        if here:
            places[kind] = here[0]
    if not places:
        some = ", ".join(list(plain)[:4]) or "none"
        raise InputError(
            f"no model is among the {len(plain)} tensors ({some}, ...): none is called {' or '.join(MARKS)}"
        )
    if weights is not None:
        choose("weights", weights, PREFIXES)
    if weights is not None and weights not in places:
        raise InputError(f"weights = {weights!r} are not in the file, which has {' and '.join(places)}")
    chosen = weights or next(iter(places))
    start = places[chosen]
    found = {s[len(start) :]: to_numpy(tensors[n]) for s, n in plain.items() if s.startswith(start)}
    return found, chosen


def find_layout(found: Arrays, objective: str | None) -> str:
    """Which of `model_layouts.WHOSE` tensors of these names are; InputError if the objective is not of it."""
    if MARKS[1] in found:
        if objective not in FACEBOOK:
            raise InputError(
                f"objective = {objective!r}, but the tensors are of facebookresearch's DiT or SiT, which "
                "look alike: give 'dit' (it predicts noise) or 'sit' (velocity)"
            )
        return objective
    if objective in FACEBOOK:
        raise InputError(
            f"objective = {objective!r}, but the tensors are of HoMM's models: 'flow' or 'noise'"
        )
    if MARKS[2] in found:
        return VIDEO
    if any(re.match(r"layers\.\d+\.mha\.", name) for name in found):
        return "homm_dit"
    return "dihpp" if "pos_emb" in found or "registers" in found else "dih"


def refuse(layout: str, problems: Iterable[str]) -> None:
    """Raises an InputError that lists the problems, if there are any."""
    lines = list(problems)
    if lines:
        more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        text = "\n  ".join(lines[:LISTED] + more)
        raise InputError(f"the tensors are not those of {WHOSE[layout]}:\n  {text}")


def wrong_tensors(found: Arrays, layout: str) -> list[str]:
    """Names that are missing or left over, dtypes that are no numbers, shapes that tell no sizes."""
    return [*_wrong_names(found, layout), *_wrong_arrays(found)]


def _wrong_names(found: Arrays, layout: str) -> Iterable[str]:
    depth = max(1, model_sizes.depth(found))
    if layout == VIDEO:
        model = models.Polymorpher(1, 1, 1, 1, 1, 1, 1, 1, depth)
    else:
        fields: dict[str, Any] = {"registers": int("registers" in found)} | model_layouts.FIXED[layout]
        model = models.DiPoM(1, 1, 1, 1, 1, depth, **fields)
    names = {entry.theirs for entry in model_layouts.entries(layout, model)} | {CONSTANTS[layout]}
    shapes = _told_shapes(found, layout)
    for name in sorted(names - found.keys()):
        yield f"missing: {name}" + (f" {list(shapes[name])}" if name in shapes else "")
    yield from (f"left over: {name} {list(found[name].shape)}" for name in sorted(found.keys() - names))


def _told_shapes(found: Arrays, layout: str) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, as far as those that are there tell the sizes; else none."""
    if any(_wrong_arrays(found)):
        return {}
    try:
        if layout == VIDEO:
            # No shape of theirs depends on what the product of sizes is made of.
            fields = model_sizes.measure(found, layout, dict.fromkeys(model_sizes.OF_CLIPS, 1))
            return layouts.shapes(model_layouts.entries(layout, models.build(fields)))
        fields = model_sizes.measure(found, layout, model_sizes.NOTHING_TOLD)
    except (KeyError, InputError):
        return {}
    fields["image_size"] = fields["image_size"] or fields["patch_size"]
    fields |= {"degree": 1, "num_heads": 1}  # no shape of theirs depends on these
    return layouts.shapes(model_layouts.entries(layout, models.DiPoM(**fields)))


def _wrong_arrays(found: Arrays) -> Iterable[str]:
    for name, array in found.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            yield f"dtype of {name}: {array.dtype}, floating-point numbers are needed"
        rank = model_sizes.RANKS.get(name, array.ndim)
        if array.ndim != rank or 0 in array.shape:
            yield f"shape of {name}: {list(array.shape)}, {rank} axes that are not empty are needed"


def predicts_variance(found: Arrays, fields: Mapping[str, Any]) -> bool:
    """Whether tensors of facebookresearch have an output of 2 C channels, the second half for variances."""
    rows = 2 * fields["patch_size"] ** 2 * fields["channels"]
    return tuple(found[name].shape for name in OUTPUT) == ((rows, fields["width"]), (rows,))


def _without_variance(found: Arrays, fields: Mapping[str, Any], drop: bool) -> Arrays:
    """The tensors with an output of C channels, where they have one of 2 C."""
    if not predicts_variance(found, fields):
        return found
    if not drop:
        raise InputError(
            f"the output has {2 * fields['channels']} channels, the second half of which predicts variances "
            "(learn_sigma): no sampler here reads them; give drop_variance to leave them out"
        )
    parts = (fields["patch_size"] ** 2, 2, fields["channels"])
    halves = {name: found[name].reshape(*parts, *found[name].shape[1:]) for name in OUTPUT}
    return {**found, **{name: half[:, 0].reshape(-1, *half.shape[3:]) for name, half in halves.items()}}


def _wrong_shapes(found: Arrays, wanted: Mapping[str, tuple[int, ...]]) -> Iterable[str]:
    for name, shape in wanted.items():
        if found[name].shape != shape:
            yield f"shape of {name}: {list(found[name].shape)}, but {list(shape)} goes with the other tensors"
