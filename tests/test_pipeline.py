"""The order of batches depends on seed and step alone, for any number of processes and any first step."""

import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pom_jax.data import Records, Synthetic, pipeline
from pom_jax.data.order import Order
from pom_jax.errors import InputError

ROOT = Path(__file__).parents[1]


def test_every_epoch_holds_every_record_once_in_another_order(digits_dir):
    source = Records(digits_dir, "test")
    stream = itertools.islice(pipeline.batches(_Indices(source), 100, seed=3), 18)
    epochs = np.concatenate([batch["index"] for batch in stream]).reshape(5, 360)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(360))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5
    other = next(pipeline.batches(_Indices(source), 100, seed=4))["index"]
    assert (other != epochs[0, :100]).mean() > 0.9


@pytest.mark.parametrize("records", [7, 4096, 5000, 65_538, 1_281_167])
def test_the_order_is_the_one_of_grain(records):
    for seed in (0, 2**32 - 1):
        theirs = grain.MapDataset.range(records).seed(seed).shuffle().repeat()
        ours = Order(records, seed)
        for start in (0, records - 3, 10**6):
            places = np.arange(start, start + 9)
            assert ours[places].tolist() == [theirs[int(place)] for place in places]
    if records == 5000:
        assert np.array_equal(np.sort(ours[np.arange(records)]), np.arange(records))


class _Indices:
    """A source whose records say their own index."""

    def __init__(self, source):
        self.manifest, self.split, self._length = source.manifest, source.split, len(source)

    def __len__(self):
        return self._length

    def gather(self, indices):
        return {"index": np.asarray(indices)}


@pytest.mark.parametrize("start", [1, 7, 10**9])
def test_any_step_can_be_the_first(start):
    source = _Indices(Synthetic(records=1000))
    whole = pipeline.batches(source, 96, seed=0, start_step=start - 1)
    next(whole)
    resumed = pipeline.batches(source, 96, seed=0, start_step=start)
    for expected, batch in itertools.islice(zip(whole, resumed, strict=False), 12):
        np.testing.assert_array_equal(batch["index"], expected["index"])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_stream_is_the_same_for_any_number_of_processes(processes):
    source = _Indices(Synthetic(records=1000))
    part = 96 // processes
    slices = [slice(part * number, part * (number + 1)) for number in range(processes)]
    parts = [pipeline.batches(source, 96, seed=5, start_step=8, rows=rows) for rows in slices]
    whole = pipeline.batches(source, 96, seed=5, start_step=8)
    for batch in itertools.islice(whole, 5):
        joined = np.concatenate([next(stream)["index"] for stream in parts])
        np.testing.assert_array_equal(joined, batch["index"])


def test_one_pass_sees_every_record_once_in_order(digits_dir):
    source = _Indices(Records(digits_dir, "test"))
    batches = list(pipeline.one_pass(source, 128))
    assert [len(batch["index"]) for batch in batches] == [128, 128, 128]
    seen = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(360))


@pytest.mark.smoke
def test_device_batches_keep_order_and_sharding_and_stop(digits_dir):
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    size = 16 * len(jax.devices())
    source = Records(digits_dir, "train")
    rows = pipeline.local_rows(sharding, size)
    np.testing.assert_array_equal(rows, np.arange(size))
    expected = pipeline.batches(source, size, seed=1)
    before = threading.active_count()
    with pipeline.device_batches(pipeline.batches(source, size, seed=1, rows=rows), sharding) as stream:
        for batch in itertools.islice(stream, 5):
            assert batch["mean"].sharding.is_equivalent_to(sharding, 5)
            for name, array in next(expected).items():
                np.testing.assert_array_equal(batch[name], array)
    del expected
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    stream.close()
    assert list(stream) == []
    assert len(list(pipeline.device_batches(pipeline.one_pass(source, size), sharding))) == -(-1437 // size)


PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pom_jax.data import Records, pipeline
source = Records(sys.argv[3], "train")
devices = np.array(jax.devices()).reshape(2, 2)
# Batch rows over all devices, and in turns; over the devices of each process alike; over the processes.
both = ("data", "fsdp")
for grid, axes in ((devices, both), (devices.T, both), (devices.T, ("data",)), (devices, ("data",))):
    sharding = NamedSharding(Mesh(grid, ("data", "fsdp")), PartitionSpec(axes))
    rows = pipeline.local_rows(sharding, 64)
    expected = pipeline.batches(source, 64, seed=0, start_step=40)
    ours = pipeline.batches(source, 64, seed=0, start_step=40, rows=rows)
    with pipeline.device_batches(ours, sharding) as stream:
        for _ in range(3):
            batch, whole = next(stream), next(expected)
            for name, array in batch.items():
                assert array.shape == whole[name].shape
                for shard in array.addressable_shards:
                    np.testing.assert_array_equal(shard.data, whole[name][shard.index])
    print(axes, rows.min(), rows.max() + 1, len(rows))
"""


def test_two_processes_read_only_their_rows_of_the_same_batches(digits_dir):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(number), str(digits_dir)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for number, process in enumerate(running):
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        half, turns = f"{32 * number} {32 * number + 32} 32", f"{16 * number} {16 * number + 48} 32"
        both = "('data', 'fsdp')"
        expected = [f"{both} {half}", f"{both} {turns}", "('data',) 0 64 64", f"('data',) {half}"]
        assert output.splitlines() == expected


def test_an_error_in_the_thread_reaches_the_reader_at_its_batch(digits_dir):
    source = Records(digits_dir, "train")
    good = itertools.islice(pipeline.batches(source, 4, seed=0), 2)

    def failing():
        yield from good
        raise InputError("record 7 is bad")

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stream = pipeline.device_batches(failing(), sharding)
    next(stream), next(stream)
    with pytest.raises(InputError, match="record 7 is bad"):
        next(stream)
    with pytest.raises(InputError, match="prefetch is 0"):
        pipeline.device_batches(good, sharding, prefetch=0)


def test_a_forgotten_stream_does_not_disturb_the_end_of_a_program(digits_dir):
    program = f"""
import jax
from pom_jax.data import Records, pipeline
source = Records({str(digits_dir)!r}, "train")
sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
stream = pipeline.device_batches(pipeline.batches(source, 8, seed=0), sharding)
print(next(stream)["mean"].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "(8, 1, 8, 8, 1)"), done.stderr


class Affine(NamedTuple):
    scale: float = 0.5
    shift: float = 0.25

    def field_scale(self, name: str) -> float:
        return 1.0


def test_images_choose_views_and_posterior_as_the_formula_says():
    manifest = Affine()
    rng = np.random.default_rng(0)
    record = {"mean": rng.normal(3, 2, (1, 2, 4, 4, 3)), "std": rng.uniform(0.5, 1, (1, 2, 4, 4, 3))}
    batch = {name: np.repeat(array, 4000, axis=0).astype(np.float16) for name, array in record.items()}
    x = np.asarray(
        jax.jit(lambda batch, key: pipeline.images(batch, key, manifest))(batch, jax.random.key(1))
    )
    assert x.shape == (4000, 4, 4, 3)
    assert x.dtype == np.float32
    mean, std = batch["mean"][0].astype(np.float64), batch["std"][0].astype(np.float64)
    expected = mean.mean(axis=0) * 0.5 + 0.25
    spread = 0.5 * np.sqrt((std**2).mean(axis=0) + mean.var(axis=0))
    np.testing.assert_allclose(x.mean(axis=0), expected, atol=0.1)
    np.testing.assert_allclose(x.std(axis=0), spread, atol=0.1)
    exact = pipeline.images({**batch, "std": np.zeros_like(batch["std"])}, jax.random.key(1), manifest)
    views = mean.astype(np.float32) * 0.5 + 0.25
    chosen = (np.asarray(exact)[:, None] == views).all(axis=(2, 3, 4))
    assert chosen.any(axis=1).all()
    assert 0.45 < chosen[:, 0].mean() < 0.55


def test_digit_images_are_pixels_from_minus_one_to_one(digits_dir):
    source = Records(digits_dir, "train")
    batch = source.gather(np.arange(1437))
    x = np.asarray(pipeline.images(batch, jax.random.key(0), source.manifest))
    np.testing.assert_array_equal(x, batch["mean"][:, 0] / 8.0 - 1.0)
    assert (x.min(), x.max()) == (-1, 1)


@pytest.mark.parametrize(
    ("batch_size", "seed", "start_step", "words"),
    [(0, 0, 0, "batch_size is 0"), (4, -1, 0, "seed is -1"), (4, 0, -2, "start_step is -2")],
)
def test_bad_streams_are_refused_at_once(batch_size, seed, start_step, words):
    with pytest.raises(InputError, match=words):
        pipeline.batches(Synthetic(), batch_size, seed, start_step=start_step)
