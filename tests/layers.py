"""What tests of layers start from: arrays and parameters drawn without a compiler, quick jit, comparison."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import Phase, settings

WIDTH = 8
# Without the slow optimisations, which take most of a test's time.
QUICK: Any = {"xla_backend_optimization_level": 0}
# Each example compiles, so a failure is told as it was found, not in its smallest form.
few = settings(max_examples=5, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


def quick_jit(function: Callable[..., Any], **options: Any) -> Any:
    return jax.jit(function, compiler_options=QUICK, **options)


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def uniform(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def position_axes(layer: Any) -> int:
    """Coordinates that a token of this layer needs, 0 for none."""
    options = [getattr(layer, name, None) for name in ("rotary", "phase")]
    return max((option.axes for option in options if option is not None), default=0)


def parameters(layer: Any, width: int = WIDTH, seed: int = 0) -> Any:
    """Parameters drawn wide, biases and coefficients included, so that nothing vanishes."""
    axes = position_axes(layer)
    places: Any = {"positions": np.zeros((2, axes))} if axes else {}
    return parameters_of(layer, jax.ShapeDtypeStruct((1, 2, width), jnp.float32), seed=seed, **places)


def parameters_of(layer: Any, *inputs: Any, seed: int = 0, spread: float = 0.5, **options: Any) -> Any:
    """The same of a layer that is called with these inputs, as one on a grid must be."""
    shapes = jax.eval_shape(lambda *given: layer.init(jax.random.key(0), *given, **options), *inputs)
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [np.float32(spread) * normal(seed + i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, drawn)


def assert_close(a: Any, b: Any, tolerance: float = 3e-6, least: float = 1e-30) -> None:
    """Trees equal to `tolerance` of each array's maximum, which counts as at least `least`."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(np.abs(y).max(initial=0), least))


def gap(a: Any, b: Any) -> float:
    """The largest difference of two arrays, in units of the second's maximum."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())
