"""The two programs of a film that grows: one draws a chunk, one adds the states of the finished chunk.

States say how noisy the frames were that left them. While a chunk is denoised its frames read the states of
the past together with what they leave themselves, at the noise they have then; those states are thrown away.
Once the chunk is finished it runs once more, at time 0, and its clean states are added, as soon as another
chunk follows or the state is asked for. So the past is always clean, which a model must have been trained
for, with a time for each frame (`diffusion.frame_times`).
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from pom_jax.diffusion.guidance import Interval, both_halves, guide
from pom_jax.diffusion.paths import Path
from pom_jax.diffusion.samplers import Sampler, sample
from pom_jax.models import Polymorpher, States, Text
from pom_jax.sampling.progress import Progress

# States of films with their texts, and, where later frames are guided, of the same without; leaves [B, L or
# n, ...].
Halves = tuple[States, ...]


def _layers_first(states: Any) -> Any:
    """Leaves [B, L or n, ...] <-> [L or n, B, ...], as the model has them."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), states)


@dataclasses.dataclass(frozen=True)
class Denoise:
    """Draws a chunk of each film; what the compiled program depends on, apart from the numbers it is given.

    Attributes:
        model: the network.
        path, prediction: what it was trained on.
        shape: (c, H, W, C) of a chunk, or of a whole clip if all frames are drawn at once.
        sampler, steps, shift, clip: see `diffusion.sample`.
        interval, schedule: see `diffusion.guide`.
        guided: whether the guidance scale counts.
        bounded: whether what comes out is cut to [-1, 1], as pixels are.
    """

    model: Polymorpher
    path: Path
    prediction: str
    shape: tuple[int, int, int, int]
    sampler: str | Sampler
    steps: int
    shift: float
    clip: float | None
    interval: Interval
    schedule: str
    guided: bool
    bounded: bool

    donated = ()

    def __call__(
        self,
        params: Any,
        scale: jax.Array,
        keys: jax.Array,
        text: Text,
        halves: Halves,
        first: jax.Array,
    ) -> jax.Array:
        """[B, c, H, W, C] from keys [B], texts, states and the number of the first frame.

        To the sampler each frame is an example of its own, so that its noise is, too, whatever the chunk.
        """
        batch, (length, *frame) = len(keys), self.shape
        numbers = jnp.asarray(first, jnp.uint32) + jnp.arange(length, dtype=jnp.uint32)
        each = jax.vmap(lambda key: jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers))(keys)
        start, steps = jax.vmap(jax.random.split, out_axes=1)(each.reshape(-1))
        noise = jax.vmap(lambda key: jax.random.normal(key, frame))(start)
        nothing = text._replace(mask=jnp.zeros_like(text.mask))
        predict = guide(
            self._network(params, first),
            (text, halves[0] if halves else None),
            (nothing, halves[-1] if halves else None),
            scale if self.guided else 1.0,
            self.interval,
            self.schedule,
        )

        def frames_apart(x: jax.Array, t: jax.Array) -> jax.Array:
            return predict(x.reshape(batch, *self.shape), t[::length]).reshape(x.shape)

        x = sample(
            frames_apart,
            steps,
            noise,
            path=self.path,
            prediction=self.prediction,
            sampler=self.sampler,
            steps=self.steps,
            shift=self.shift,
            clip=self.clip,
        ).reshape(batch, *self.shape)
        return jnp.clip(x, -1, 1) if self.bounded else x

    def _network(self, params: Any, first: jax.Array) -> Callable[[jax.Array, jax.Array, Any], Any]:
        def predict(x: jax.Array, t: jax.Array, given: Any) -> Any:
            text, states = given
            place = first // self.model.frame_patch
            if states is None:
                return self.model.apply({"params": params}, x, t, text, None, place)
            return self.model.apply({"params": params}, x, t, text, _layers_first(states), place)[0]

        return predict


@dataclasses.dataclass(frozen=True)
class Add:
    """Adds the states of finished frames, which are clean: the network runs once, at time 0.

    PoM's states do not grow. Attention's caches do, with the tokens: those that are given have room for the
    new ones (`with_room`).
    """

    model: Polymorpher

    donated = (3,)  # what was carried; what comes out is as large

    def __call__(self, params: Any, x: jax.Array, text: Text, halves: Halves, first: jax.Array) -> Halves:
        """States after frames x [B, c, H, W, C], the first of which has the number `first`."""
        states = halves[0]
        if len(halves) == 2:
            x = jnp.concatenate([x, x])
            states = both_halves(*halves)
            text = both_halves(text, text._replace(mask=jnp.zeros_like(text.mask)))
        place = first // self.model.frame_patch
        t = jnp.zeros(len(x))
        _, after = self.model.apply({"params": params}, x, t, text, _layers_first(states), place)
        after = _layers_first(after)
        if self.model.mixer == "attention":
            tokens = place * self._tokens((1, self.model.frame_patch, *x.shape[2:]))
            caches = jax.tree.map(lambda past, all: _moved(past, all, tokens), states.blocks, after.blocks)
            after = after._replace(blocks=caches)
        if len(halves) == 1:
            return (after,)
        return tuple(jax.tree.map(lambda leaf, half=half: jnp.split(leaf, 2)[half], after) for half in (0, 1))

    def with_room(self, halves: Halves, shape: tuple[int, ...]) -> Halves:
        """The same states, with room for all tokens of films [B, T, H, W, C].

        Caches are doubled, so that streams compile for a few lengths and not for every one.
        """
        if self.model.mixer != "attention":
            return halves
        room = 1 << (self._tokens(shape) - 1).bit_length()

        def padded(leaf: jax.Array) -> jax.Array:
            missing = room - leaf.shape[2]
            return jnp.pad(leaf, [(0, 0), (0, 0), (0, missing), *[(0, 0)] * (leaf.ndim - 3)])

        if jax.tree.leaves(halves[0].blocks)[0].shape[2] >= room:
            return halves
        return tuple(half._replace(blocks=jax.tree.map(padded, half.blocks)) for half in halves)

    def _tokens(self, shape: tuple[int, ...]) -> int:
        """Of films [B, T, H, W, C]."""
        return shape[1] // self.model.frame_patch * (shape[2] * shape[3] // self.model.patch_size**2)


def _moved(past: jax.Array, after: jax.Array, tokens: jax.Array) -> jax.Array:
    """[B, L, S, ...] the past, behind its first `tokens` what stands behind all of it in `after`."""
    new = after[:, :, past.shape[2] :]
    return jax.lax.dynamic_update_slice_in_dim(past, new.astype(past.dtype), tokens, axis=2)


class Program(NamedTuple):
    """A compiled program, and what it needs beside its arguments and results."""

    run: Callable[..., Any]
    working_bytes: int


class Programs:
    """Compiled programs, by what they depend on and by the shapes of their arguments.

    Args:
        sharding: of what comes out, batch first.
    """

    def __init__(self, sharding: NamedSharding):
        self._sharding = sharding
        self._compiled: dict[Any, Program] = {}
        self._announced: set[Denoise | Add] = set()

    def __len__(self) -> int:
        return len(self._compiled)

    def compile(
        self, program: Denoise | Add, name: str, arguments: tuple[Any, ...], progress: Progress | None
    ) -> Program:
        """The program for arguments like these; `progress` hears its name once, whatever its lengths."""
        leaves, structure = jax.tree.flatten(arguments)
        key = (program, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in self._compiled:
            jitted = jax.jit(program, donate_argnums=program.donated, out_shardings=self._sharding)
            lowered = jitted.lower(*arguments)
            told = None if program in self._announced else progress
            self._announced.add(program)
            if told is not None:
                told.compiling(name)
            began = time.perf_counter()
            compiled = lowered.compile()
            memory = compiled.memory_analysis()  # takes its time, so once
            self._compiled[key] = Program(compiled, memory.temp_size_in_bytes if memory else 0)
            if told is not None:
                told.compiled(time.perf_counter() - began)
        return self._compiled[key]
