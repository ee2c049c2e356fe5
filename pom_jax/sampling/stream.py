"""Films that grow chunk by chunk, each chunk drawn given the states that the finished frames left.

How the noise in the states is dealt with: see `sampling.film_programs`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from pom_jax.errors import InputError
from pom_jax.models import Polymorpher, Text
from pom_jax.sampling.film_programs import Add, Denoise, Halves, Program, Programs
from pom_jax.sampling.progress import Progress

Put = Callable[[Any], Any]  # arrays to the devices


class StreamState(NamedTuple):
    """All that films need to go on, in the memory of the host.

    Attributes:
        frame: finished frames so far, which is the number of the next one.
        size: (H, W) of a frame.
        seed: of the noise.
        films: [N] uint32, number of each film among those of the seed.
        text: of each film, numpy arrays.
        captions: the texts in words, () where they are not known.
        halves: states with the text, and without it where there is guidance; leaves [N, L or n, ...].
    """

    frame: int
    size: tuple[int, int]
    seed: int
    films: np.ndarray
    text: Text
    captions: tuple[str, ...]
    halves: Halves


class StreamedFrames:
    """What a stream gives at a time.

    Attributes:
        frames: [N, c, H, W, C] float32, in the space of the model.
        first: number of the first of them in the film.
        working_bytes: what the program that drew the frames needs beside its inputs and results; 0 for given
            ones.
    """

    def __init__(self, frames: np.ndarray, drawing: "Drawing", working_bytes: int):
        self._drawing, self._end = drawing, drawing.films.frame
        self.frames, self.first = frames, self._end - frames.shape[1]
        self.working_bytes = working_bytes

    @property
    def state(self) -> StreamState:
        """A copy of what the films carry on after these frames.

        Raises:
            InputError: later frames have been drawn, with the memory of this state.
        """
        return self._films().state()

    @property
    def state_bytes(self) -> int:
        """Size of what the films carry on after these frames, all together; raises as `state`."""
        return self._films().state_bytes

    def _films(self) -> "Films":
        """After these frames and no later ones, their states added."""
        films = self._drawing.films
        if films.frame != self._end:
            raise InputError(
                f"the state after frame {self._end} is gone, for the stream has gone on to frame "
                f"{films.frame}: take it before the next frames are asked for"
            )
        self._drawing.add_states()
        return films


class Place(NamedTuple):
    """A batch of `size` among all films: `count` from `first` on, the rest only fills it up."""

    first: int
    count: int
    size: int

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Of all films [N, ...] those of the batch, [size, ...]."""
        part = array[self.first : self.first + self.count]
        return np.pad(part, [(0, self.size - self.count), *[(0, 0)] * (part.ndim - 1)])


@dataclasses.dataclass
class Batch:
    """Films that are drawn at once.

    Attributes:
        place: which they are.
        keys: [B], one for each film.
        text: of each.
        halves: their states.
    """

    place: Place
    keys: jax.Array
    text: Text
    halves: Halves


class Films:
    """N films on the devices, in batches of one size, after the same number of frames.

    Attributes:
        frame: finished frames, which is the number of the next one.
        batches: of films.
        unread: batches to whose states the last finished frames [B, c, H, W, C] are still to be added.
    """

    def __init__(self, start: StreamState, size: int, put: Put):
        self.frame, self._start = start.frame, start._replace(halves=())
        self.unread: list[tuple[Batch, jax.Array]] = []
        count = len(start.films)
        self.batches = []
        for first in range(0, count, size):
            place = Place(first, min(size, count - first), size)
            keys = film_keys(start.seed, place.cut(start.films))
            text, halves = put(jax.tree.map(place.cut, (start.text, start.halves)))
            self.batches.append(Batch(place, put(keys), text, halves))

    @property
    def state_bytes(self) -> int:
        return sum(leaf.nbytes for batch in self.batches for leaf in jax.tree.leaves(batch.halves))

    def state(self) -> StreamState:
        """A copy of it all."""
        parts = [
            jax.tree.map(lambda leaf, batch=batch: np.array(leaf[: batch.place.count]), batch.halves)
            for batch in self.batches
        ]
        halves = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return self._start._replace(frame=self.frame, halves=halves)


def film_keys(seed: int, films: np.ndarray) -> jax.Array:
    """Random keys [N] of films by their numbers [N]."""
    return jax.vmap(lambda film: jax.random.fold_in(jax.random.key(seed), film))(films)


def empty_states(model: Polymorpher, films: int, size: tuple[int, int]) -> Any:
    """The states before any frame of (H, W), leaves [N, L or n, ...] in numpy; nothing is computed."""
    shapes = jax.eval_shape(lambda: model.init_states(films, size))
    return jax.tree.map(lambda s: np.zeros((s.shape[1], s.shape[0], *s.shape[2:]), s.dtype), shapes)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What draws the next frames of films.

    Attributes:
        films: that are drawn, at the place where they are.
        given: [N, T0, H, W, C] first frames to come, if there are any.
        denoise: the programs that draw frames before which there are none, and later ones.
        add: the one that adds their states; there is none for films that are drawn at once.
        programs: what keeps them, compiled.
        params: of the network.
        scales: of the guidance, of frames before which there are none, and of later ones.
        put, whole: what puts arrays on the devices, cut along the batch or whole.
        progress: is told of frames.
    """

    films: Films
    given: np.ndarray | None
    denoise: tuple[Denoise, Denoise]
    add: Add | None
    programs: Programs
    params: Any
    scales: tuple[float, float]
    put: Put
    whole: Put
    progress: Progress | None

    @property
    def later(self) -> bool:
        """Whether the next frames lie behind finished ones."""
        return self.films.frame > 0

    def prepare(self, total: int | None) -> None:
        """Compiles what draws a chunk; a setting that cannot be is said here, before the first frame."""
        given = 0 if self.given is None else self.given.shape[1]
        left = math.inf if total is None else total - given
        begins = self.films.frame + given == 0
        if left > 0:
            self._denoise(self.films.batches[0], later=not begins)
        if begins and left > self.denoise[0].shape[0]:
            self._denoise(self.films.batches[0], later=True)

    def frames(self, total: int | None) -> Iterator[StreamedFrames]:
        """Draws `total` frames of each film, the given ones included; None for no end."""
        films, done = self.films, 0
        count = sum(batch.place.count for batch in films.batches)
        given = 0 if self.given is None else self.given.shape[1]
        for length, known in pieces(total, given, self.denoise[0].shape[0]):
            self.add_states()
            parts, drawn, working = [], [], 0
            for batch in films.batches:
                if known:
                    assert self.given is not None
                    x = self.put(batch.place.cut(self.given[:, done : done + length]).astype(np.float32))
                else:
                    program, arguments = self._denoise(batch, later=self.later)
                    x = program.run(*arguments)
                    x = x if x.shape[1] == length else x[:, :length]
                    working = max(working, program.working_bytes)
                drawn.append((batch, x))
                parts.append(np.asarray(x)[: batch.place.count])
                if self.progress is not None and total is not None:
                    ready = done * count + length * (batch.place.first + batch.place.count)
                    self.progress.drawn(ready, total * count)
            found = np.concatenate(parts)
            self._check(found)
            # Not batch by batch: what fails or is interrupted leaves the films as they were.
            films.frame, films.unread = films.frame + length, drawn
            done += length
            yield StreamedFrames(found, self, working)

    def add_states(self) -> None:
        """Adds the states of the last finished frames; not sooner, for nothing may follow them."""
        unread = self.films.unread
        while unread and self.add is not None:
            batch, x = unread[-1]
            if any(leaf.is_deleted() for leaf in jax.tree.leaves(batch.halves)):
                raise InputError(
                    f"the state after frame {self.films.frame} is gone, for adding it was interrupted: go on "
                    "from a state that you saved, or draw the films anew"
                )
            batch.halves = self._added(self.add, batch, x)
            unread.pop()

    def _denoise(self, batch: Batch, *, later: bool) -> tuple[Program, tuple[Any, ...]]:
        """The compiled program that draws a chunk, and its arguments now."""
        scale, first = self.whole((np.float32(self.scales[later]), np.int32(self.films.frame)))
        arguments = (self.params, scale, batch.keys, batch.text, batch.halves, first)
        name = "sampler"
        if self.add is not None and self.denoise[0] != self.denoise[1]:
            name += f" of {'later' if later else 'first'} frames"
        return self.programs.compile(self.denoise[later], name, arguments, self.progress), arguments

    def _added(self, add: Add, batch: Batch, x: jax.Array) -> Halves:
        """The states of a batch after its frames x; the ones before are gone."""
        halves = self.put(add.with_room(batch.halves, (len(x), self.films.frame, *x.shape[2:])))
        first = self.whole(np.int32(self.films.frame - x.shape[1]))
        arguments = (self.params, x, batch.text, halves, first)
        program = self.programs.compile(add, "reader of finished frames", arguments, self.progress)
        return program.run(*arguments)

    def _check(self, found: np.ndarray) -> None:
        if not np.isfinite(found).all():
            first, last = self.films.frame, self.films.frame + found.shape[1] - 1
            raise InputError(
                f"frames {first} to {last} are not finite with guidance {self.scales[self.later]:g} and "
                f"{self.denoise[self.later].steps} steps: lower the guidance, take more steps or another "
                "sampler, or another checkpoint"
            )


def pieces(total: int | None, given: int, chunk: int) -> Iterator[tuple[int, bool]]:
    """How films of `total` frames (None for no end) are drawn: lengths, and whether the frames are given."""
    for first in range(0, given, chunk):
        yield min(chunk, given - first), True
    left = None if total is None else total - given
    while left is None or left > 0:
        length = chunk if left is None else min(chunk, left)
        yield length, False
        left = None if left is None else left - length
