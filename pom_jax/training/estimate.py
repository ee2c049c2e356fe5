"""The memory of a step by arithmetic, in a second and without a compiler: what backpropagation keeps.

The state is exact. What the backward pass keeps of the forward pass is read off the traced network, so it is
right for every mixer and every policy of rematerialisation; what else lives beside it is a rule of thumb.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pom_jax.diffusion.frame_times import FrameTimes
from pom_jax.models import count_tokens, dummy_inputs
from pom_jax.ops.mesh import backend, parts
from pom_jax.training.checkpoint import tree_bytes
from pom_jax.training.memory import Memory, largest_on_host, of_arrays
from pom_jax.training.objective import PICTURES, frame_times, network
from pom_jax.training.run import Run

Call = tuple[FrameTimes | None, Any]  # what is learned, and the network's x, t and given

# Arrays [tokens, D] float32 that live at the peak besides what is kept: 3 to 9 in compiled steps of DiPoM-S/2
# to XL/2 and DiT-XL/2. With 6 all memory together is at most 6 % off, on one CPU and on TPU v5p 9 %.
ARRAYS_AT_WORK = 6
WEIGHTS_AT_WORK = 3  # kernels of a layer where a device holds a part of them: gathered, and their gradient


def estimate(run: Run) -> Memory:
    """What a device needs for a step; call it with the run's mesh set (`jax.set_mesh`)."""
    model, slices = run.config.model, run.config.optimizer.accumulate
    images = run.config.data.batch_size // slices
    calls = _calls(run, images)
    kept = _kept(run, calls, model.remat)
    arrays = of_arrays(run.state, run.batch)
    frames, count = frame_times(run.config)
    tokens = images * count_tokens(run.model)
    if frames is not None:
        tokens = tokens // frames.film_every * frames.takes + tokens // count * frames.still_frames
    at_work = 4 * tokens * model.width * ARRAYS_AT_WORK // _cuts()
    if model.remat != "none":  # one block at a time keeps everything again
        at_work += max(_kept(run, [call], "none").stacked for call in calls) // _periods(model)
    if arrays.parameters < (whole := tree_bytes(run.state.params)):
        at_work += WEIGHTS_AT_WORK * whole // model.depth
    gradients = arrays.parameters * (1 if slices == 1 else 2)
    during = kept.bytes + gradients + at_work
    # What comes from the host finds the activations gone; it comes parameter by parameter.
    update = arrays.parameters + largest_on_host(run.state)
    return dataclasses.replace(arrays, work=max(during, kept.bytes + kept.converted, update))


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Bytes on a device that wait for the backward pass.

    Attributes:
        bytes: of all.
        stacked: of those with an axis of layers.
        converted: of the largest one that is widened before the backward pass.
    """

    bytes: int
    stacked: int
    converted: int


def _kept(run: Run, calls: Sequence[Call], remat: str) -> _Kept:
    """What lies between the forward and the backward pass of these calls, without the parameters."""
    model = run.model.clone(remat=remat, scan=True)
    how, shapes = zip(*calls, strict=True)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), run.state.params)

    def backward(params: Any, *calls: Any) -> Any:
        def forward(params: Any) -> Any:
            return [network(model, params, f)(*inputs) for f, inputs in zip(how, calls, strict=True)]

        return jax.vjp(forward, params)[1]

    leaves = jax.tree.leaves(jax.eval_shape(backward, params, *shapes))
    weights = {(leaf.size, leaf.dtype) for leaf in jax.tree.leaves(params)}
    leaves = [leaf for leaf in leaves if (leaf.size, leaf.dtype) not in weights]
    # The CPU's compiler computes in float32 what it is given in bfloat16, and widens what was kept: all of
    # it before the backward pass, where one array at a time is there twice.
    narrow = jnp.bfloat16 if backend() == "cpu" else None
    layers = _periods(model)
    total = stacked = converted = 0
    for leaf in leaves:
        size = math.prod(leaf.shape) * leaf.dtype.itemsize // _cuts()
        if leaf.dtype == narrow:
            converted, size = max(converted, size), 2 * size
        total += size
        stacked += size if leaf.ndim and leaf.shape[0] == layers else 0
    return _Kept(total, stacked, converted)


def _calls(run: Run, images: int) -> list[Call]:
    """What the network is called on in a step, as shapes."""
    frames, count = frame_times(run.config)
    one: Any = jax.eval_shape(lambda: dummy_inputs(run.model))

    def inputs(batch: int, length: int = 1, times: tuple[int, ...] = ()) -> Any:
        x, t, given = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), one)
        shapes = (batch, x.shape[1] * length // max(count, 1), *x.shape[2:]), (batch, *times)
        return *(jax.ShapeDtypeStruct(shape, t.dtype) for shape in shapes), given

    if frames is None:
        return [(None, inputs(images))]
    length = frames.takes * count
    times = () if frames.kind == "shared" else (length,)
    calls: list[Call] = [(frames, inputs(images // frames.film_every, length, times))]
    if frames.still_frames:
        calls.append((PICTURES, inputs(images * frames.still_frames)))
    return calls


def _periods(model: Any) -> int:
    """Turns of the loop over layers."""
    return model.depth // max(1, model.attention_every)


def _cuts() -> int:
    """Devices that share the images and tokens of a batch."""
    return parts("batch") * parts("tokens")
