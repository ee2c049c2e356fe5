"""From a source to batches on the device, in one order that depends on the seed and the step only."""

import contextlib
import itertools
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax.data.ahead import read_ahead
from pom_jax.data.order import Order
from pom_jax.data.sources import Source
from pom_jax.errors import InputError

Rows = slice | np.ndarray

READERS = 2  # threads of a stream, each with a whole batch, and as many batches read ahead


class Affine(Protocol):
    """The map from stored values to the model's space: a `Manifest`, or anything with these three."""

    @property
    def scale(self) -> float: ...

    @property
    def shift(self) -> float: ...

    def field_scale(self, name: str) -> float: ...


def batches(
    source: Source, batch_size: int, seed: int, *, start_step: int = 0, rows: Rows | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Training batches for ever, from `start_step` on, without replaying what came before.

    The order is a fresh shuffle of the split every epoch, one epoch after the other; a batch may straddle
    two. Batch n holds places n * batch_size to (n + 1) * batch_size of it, for any number of processes.
    Threads read ahead from the first `next` on, until the iterator is closed or forgotten.

    Args:
        source: the split; its `gather` is called by several threads.
        batch_size: records in the batch of all processes together.
        seed: of the order, in [0, 2**32).
        start_step: the step whose batch comes first.
        rows: which rows of each batch this process reads (`local_rows`); all by default.

    Yields:
        `{field: [rows, *shape]}` numpy arrays.

    Raises:
        InputError: at once for a batch size, seed or step out of range or an empty split; later for a record
            that cannot be used.
    """
    _check_batch(source, batch_size)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; the order of the data needs one from 0 to {2**32 - 1}")
    if start_step < 0:
        raise InputError(f"start_step is {start_step}; steps are counted from 0")
    order = Order(len(source), seed)
    places = np.arange(batch_size)[slice(None) if rows is None else rows]

    steps = (order[step * batch_size + places] for step in itertools.count(start_step))
    return read_ahead(source.gather, steps, READERS, READERS)


def one_pass(source: Source, batch_size: int, *, rows: Rows | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Every record once, in the order of the files, in batches of one shape (so nothing compiles twice).

    Args:
        source, batch_size, rows: see `batches`.

    Yields:
        `{field: [rows, *shape]}` and `valid` [rows] bool: False marks the padding (record 0 again) that fills
        the last batch.

    Raises:
        InputError: see `batches`.
    """
    _check_batch(source, batch_size)
    places = np.arange(batch_size)[slice(None) if rows is None else rows]

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(source), batch_size):
            valid = start + places < len(source)
            yield {**source.gather(np.where(valid, start + places, 0)), "valid": valid}

    return generate()


def _check_batch(source: Source, batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"data.batch_size is {batch_size}; it must be at least 1")
    if not len(source):
        raise InputError(f"split {source.split} of data set {source.manifest.name} is empty")


def local_rows(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """The rows of a batch that the devices of this process hold under `sharding` (first axis), in order.

    On a torus they need not lie together; processes that share the tokens of a sequence hold the same ones.

    Raises:
        InputError: a batch size that the mesh does not divide.
    """
    try:
        places = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError as error:
        raise InputError(
            f"data.batch_size={batch_size} cannot be split over the mesh: {str(error).splitlines()[0]}; "
            "choose a multiple of the number of devices that share the batch"
        ) from error
    held = np.zeros(batch_size, bool)
    for place in places:
        if place is not None:
            held[place[0]] = True
    return np.flatnonzero(held)


def device_batches(
    iterator: Iterator[Mapping[str, np.ndarray]], sharding: jax.sharding.Sharding, prefetch: int = 2
) -> "DeviceBatches":
    """Batches of `iterator` on the devices, read and copied `prefetch` ahead by a thread.

    An error of the iterator is raised at the batch where it happened. `close()`, the end of a `with` block,
    or the end of the program stop the thread.

    Args:
        iterator: host batches; each process gives the rows of `local_rows(sharding, batch_size)`.
        sharding: of the batch axis, e.g. `NamedSharding(mesh, P(("data", "fsdp")))`.
        prefetch: how many batches may wait on the device, at least 1.

    Raises:
        InputError: a prefetch below 1.
    """
    if prefetch < 1:
        raise InputError(f"prefetch is {prefetch}; at least 1 batch must be able to wait on the device")
    return DeviceBatches(iterator, sharding, prefetch)


class DeviceBatches(Iterator[dict[str, jax.Array]]):
    """What `device_batches` returns: an iterator that owns a thread."""

    def __init__(
        self, iterator: Iterator[Mapping[str, np.ndarray]], sharding: jax.sharding.Sharding, prefetch: int
    ):
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        # The thread must not hold `self`, or a forgotten iterator would never be collected.
        self._thread = threading.Thread(
            target=_fill,
            args=(iterator, sharding, self._queue, self._stop),
            name="device_batches",
            daemon=True,
        )
        self._close = weakref.finalize(self, _shut, self._stop, self._queue, self._thread)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the next batch is there, so that nobody would wait for it."""
        return not self._queue.empty()

    def __next__(self) -> dict[str, jax.Array]:
        if self._stop.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Stops the thread; safe to call twice."""
        self._close()

    def __enter__(self) -> "DeviceBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fill(
    iterator: Iterator[Mapping[str, np.ndarray]],
    sharding: jax.sharding.Sharding,
    out: queue.Queue[Any],
    stop: threading.Event,
) -> None:
    try:
        for batch in iterator:
            if stop.is_set():
                return
            arrays = {
                name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
                for name, value in batch.items()
            }
            _put(out, arrays, stop)
        _put(out, StopIteration(), stop)
    except BaseException as error:  # whatever it is, it belongs to the caller of next()
        _put(out, error, stop)


def _put(out: queue.Queue[Any], item: object, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            out.put(item, timeout=0.1)
            return


def _shut(stop: threading.Event, out: queue.Queue[Any], thread: threading.Thread) -> None:
    stop.set()
    with contextlib.suppress(queue.Empty):
        while True:
            out.get_nowait()
    if thread is not threading.current_thread():
        thread.join()


def images(batch: Mapping[str, jax.Array | np.ndarray], key: jax.Array, affine: Affine) -> jax.Array:
    """Draws the images or clips a model sees from stored moments; to be called inside the jitted step.

    Args:
        batch: `mean` [B, V, H, W, C] or, of clips, [B, V, T, H, W, C]; for latents also `std`, alike.
        key: chooses one of the V views of each record and the noise of the posterior.
        affine: `scale`, `shift` and the scales of the fields, e.g. the manifest.

    Returns:
        x [B, H, W, C] or [B, T, H, W, C] float32, `(mean + std * noise) * scale + shift`;
        mean and std are what is stored times the scale of the field.
    """
    view_key, noise_key = jax.random.split(key)
    records, views, *sample = batch["mean"].shape
    view = jax.random.randint(view_key, (records,), 0, views).reshape(-1, 1, *(1 for _ in sample))

    def chosen(name: str) -> jax.Array:
        picked = jnp.take_along_axis(jnp.asarray(batch[name]), view, axis=1)[:, 0]
        return picked.astype(jnp.float32) * affine.field_scale(name)

    x = chosen("mean")
    if "std" in batch:
        x = x + chosen("std") * jax.random.normal(noise_key, x.shape)
    return x * affine.scale + affine.shift
