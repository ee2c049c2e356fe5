"""What the fields of `PoM` can be, and the recipe that they make."""

import math
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp
import numpy as np

from pom_jax.errors import InputError, choose
from pom_jax.ops.mixing import COUNTS, IMPLEMENTATIONS
from pom_jax.ops.phase import Phase
from pom_jax.ops.polynomials import CLAMP, SLOPE
from pom_jax.ops.reads import READS
from pom_jax.ops.recipe import Recipe
from pom_jax.ops.rotary import Rotary

FORMS = ("product", "power")

# Smallest values of whole numbers.
LEAST = {"width": 1, "degree": 1, "expansion": 1, "groups": 1, "gate_heads": 0, "global_tokens": 0}
MOST = 2**31 - 1  # of a size, so that numbers of an array have 64 bits: XLA aborts where they have not
# Features of a higher degree over- or underflow float32 long before.
MOST_DEGREE = 64


def recipe_of(layer: Any, width: int) -> Recipe:
    """What a layer computes for tokens of D channels, once all its fields have been checked.

    Args:
        layer: a `PoM`.
        width: D.

    Raises:
        InputError: a field that cannot be, alone or beside another.
    """
    _check_sizes(layer, width)
    expanded, heads = layer.expansion * width, max(layer.gate_heads, 1)
    check_whole("E = expansion * width", expanded, 1)
    check_option("rotary", layer.rotary, Rotary)
    check_option("phase", layer.phase, Phase)
    if layer.rotary is not None:
        layer.rotary.check(expanded, heads)
    if layer.phase is not None:
        layer.phase.check()
    return Recipe(
        layer.form,
        layer.degree,
        expanded,
        heads,
        *_activation(layer),
        tuple(layer.reads),
        layer.rotary,
        layer.phase,
        compute_dtype(layer),
    )


def check_option(name: str, option: Any, kind: type) -> None:
    """Raises an InputError unless a field is None or of its kind."""
    if option is not None and not isinstance(option, kind):
        raise InputError(f"{name} = {option!r} must be None or nn.{kind.__name__}(...)")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises an InputError unless a size is a whole number, large enough, and one that arrays can have."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} = {value!r} must be a whole number of at least {least}")
    if int(value) > MOST:
        raise InputError(f"{name} = {value} is above {MOST}, more than an array can have")


def check_batch(batch: Any, *sizes: int) -> None:
    """Raises an InputError where states of such sizes, of a batch that is a number, are beyond any memory."""
    if isinstance(batch, Integral) and math.prod((int(batch), *sizes)) > 2**60:
        raise InputError(
            f"batch = {batch}: as many states of {' x '.join(map(str, sizes))} numbers are beyond any memory"
        )


def compute_dtype(layer: Any) -> np.dtype:
    """What a layer's products are computed in; an InputError for no dtype, or one of whole numbers."""
    try:
        dtype = jnp.dtype(jnp.float32 if layer.dtype is None else layer.dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"dtype = {layer.dtype!r}: {error}; give one such as jnp.bfloat16") from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"dtype = {dtype} has no fractions; give one such as jnp.bfloat16")
    return dtype


def _check_sizes(layer: Any, width: int) -> None:
    choose("form", layer.form, FORMS)
    choose("count", layer.count, COUNTS)
    choose("implementation", layer.implementation, IMPLEMENTATIONS)
    reads = layer.reads if isinstance(layer.reads, tuple) else ()
    known = all(isinstance(read, str) and read in READS for read in reads)
    if not reads or not known or len({*reads}) < len(reads):
        raise InputError(f"reads = {layer.reads!r} must be a tuple of some of {', '.join(READS)}")
    for name in ("use_bias", "feature_scale", "causal"):
        value = getattr(layer, name)
        if not isinstance(value, bool | np.bool_) and not (value is None and name == "use_bias"):
            raise InputError(f"{name} = {value!r} must be True or False")
    if isinstance(layer.degree, Integral) and int(layer.degree) > MOST_DEGREE:
        raise InputError(f"degree = {layer.degree} is above {MOST_DEGREE}; the papers use 2 to 4")
    for name, least in LEAST.items():
        check_whole(name, width if name == "width" else getattr(layer, name), least)
    grid: Any = layer.grid
    if not isinstance(grid, tuple) or not all(isinstance(s, int | np.integer) and s > 0 for s in grid):
        raise InputError(f"grid = {grid!r} must be a tuple of the sizes of its axes, such as (16, 16)")
    if layer.form == "product":
        if layer.gate_heads > 1 or layer.groups > 1:
            raise InputError(
                f"gate_heads = {layer.gate_heads} and groups = {layer.groups} belong to form = 'power'; "
                "leave them at 1 with form = 'product'"
            )
        if layer.feature_scale:
            raise InputError("feature_scale = True belongs to form = 'power'")
    else:
        _check_power(layer, width)


def _activation(layer: Any) -> tuple[float, tuple[float, float] | None]:
    """Slope and clamp of the power form as floats: whole numbers would have to fit int32."""
    if layer.form == "product":
        return SLOPE, CLAMP
    bounds = None if layer.clamp is None else (float(layer.clamp[0]), float(layer.clamp[1]))
    return float(layer.slope), bounds


def _check_power(layer: Any, width: int) -> None:
    if width % layer.groups:
        raise InputError(f"groups = {layer.groups} does not divide the width D = {width}")
    expanded = layer.expansion * width
    if layer.gate_heads > 1 and expanded % layer.gate_heads:
        raise InputError(
            f"gate_heads = {layer.gate_heads} does not divide the expanded width "
            f"E = {layer.expansion} * {width} = {expanded}"
        )
    slope: Any = layer.slope
    if not isinstance(layer.slope, Real) or not -3e38 < slope < 3e38:  # what float32 holds
        raise InputError(f"slope = {layer.slope!r} must be a finite number")
    bounds: Any = layer.clamp
    if bounds is None:
        return
    if not isinstance(bounds, tuple) or len(bounds) != 2 or not all(isinstance(b, Real) for b in bounds):
        raise InputError(f"clamp = {bounds!r} must be None or two numbers, a lower and an upper bound")
    if any(3e38 < abs(b) < math.inf for b in bounds):
        raise InputError(f"clamp = {bounds}: a bound beyond 3e38 is more than float32 holds; say math.inf")
    if not bounds[0] < bounds[1]:
        raise InputError(f"clamp = {bounds}: the lower bound must be below the upper one")
