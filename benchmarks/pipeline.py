"""The loader beside reading the same bytes raw, and the host's part of prepare.py.

    python -m benchmarks.pipeline [--records=16384] [--batch=256]

Latents of 256 x 256 images (32 x 32 x 4, mean and deviation, both mirror images, float16) are written to a
temporary folder (about twice 0.5 GB) and read in the loader's order: raw rows of a memory-mapped file; the
loader in its first epoch (when every checksum is compared) and later, from memory, where train.py keeps what
fits into data.memory_gb, from the files as of larger sets, and with the copy to the device. Then pictures of
scikit-learn are read and cropped by one thread and by one a core. A minute on two CPU cores.
"""

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import report
from pom_jax.data import Field, Records, Writer, pipeline
from pom_jax.data.ahead import read_ahead
from pom_jax.data.order import Order
from pom_jax.data.pictures import open_pictures
from pom_jax.host_memory import keep_freed_memory

SHAPE = (2, 32, 32, 4)
CHUNK = 512


def write_sets(folder: Path, records: int) -> Path:
    """The data set, and the bytes of its training records alone in a file, which is returned."""
    rng = np.random.default_rng(0)
    fields = {"mean": Field("float16", SHAPE), "std": Field("float16", SHAPE), "label": Field("int32", ())}

    def batch(count: int) -> dict[str, np.ndarray]:
        mean, std = (rng.random((count, *SHAPE), np.float32).astype(np.float16) for _ in range(2))
        return {"mean": mean, "std": std, "label": rng.integers(0, 1000, count, np.int32)}

    classes = [str(label) for label in range(1000)]
    raw = folder / "raw"
    with (
        Writer(
            folder / "set", name="latents", fields=fields, classes=classes, scale=1.0, shift=0.0
        ) as writer,
        raw.open("wb") as file,
    ):
        for start in range(0, records, CHUNK):
            some = batch(min(CHUNK, records - start))
            writer.write("train", some)
            rows = [array.reshape(len(array), -1).view(np.uint8) for array in some.values()]
            file.write(np.concatenate(rows, axis=1).tobytes())
        writer.write("test", batch(1))
    return raw


def loader(folder: Path, records: int, size: int, rounds: int) -> dict[str, float]:
    """Seconds of an epoch for each way of reading it; all take turns."""
    raw = write_sets(folder, records)
    kept = Records(folder / "set", "train", memory=2 * raw.stat().st_size)
    source = Records(folder / "set", "train")
    rows = np.memmap(raw, np.uint8, "r", shape=(records, source.manifest.record_bytes))
    steps, order = records // size, Order(records, 0)
    places = [order[np.arange(step * size, (step + 1) * size)] for step in range(steps)]
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def take(stream: Iterator[object]) -> None:
        for batch in itertools.islice(stream, steps):  # held until the next is there, as by any user
            jax.block_until_ready(batch)

    def on_device() -> None:
        with pipeline.device_batches(pipeline.batches(kept, size, 0), sharding) as ahead:
            take(ahead)

    raw_stream = (rows[some] for some in itertools.cycle(places))
    from_memory, from_files = (pipeline.batches(some, size, 0) for some in (kept, source))
    first = report.seconds(lambda: take(pipeline.batches(Records(folder / "set", "train"), size, 0)))
    calls = {
        "raw rows of a memory-mapped file": lambda: take(raw_stream),
        "loader, from memory": lambda: take(from_memory),
        "loader, from memory to the device": on_device,
        "loader, from files": lambda: take(from_files),
    }
    return {**report.in_turns(calls, rounds), "loader, first epoch": first}


def cropping(folder: Path, pictures: int, size: int) -> dict[str, float]:
    """Seconds to read and crop pictures (640 x 427, JPEG), by threads."""
    photographs = load_sample_images().images
    (folder / "pictures").mkdir()
    for number in range(pictures):
        Image.fromarray(photographs[number % 2]).save(folder / f"pictures/{number}.jpg", quality=90)
    found = open_pictures(folder / "pictures")

    def crop(workers: int) -> None:
        for _ in read_ahead(lambda index: found.crop(index, size), range(pictures), workers, 64):
            pass

    cores = os.cpu_count() or 1
    return report.in_turns({f"{n} thread{'s' * (n > 1)}": lambda n=n: crop(n) for n in sorted({1, cores})}, 3)


def main() -> None:
    """Measures and reports."""
    parser = report.parser(__doc__)
    parser.add_argument("--records", type=int, default=16_384, help="latents in the data set")
    parser.add_argument("--batch", type=int, default=256, help="latents a batch")
    parser.add_argument("--rounds", type=int, default=5, help="timed epochs of each way")
    parser.add_argument("--pictures", type=int, default=64, help="pictures to crop")
    parser.add_argument("--size", type=int, default=256, help="side of the crops")
    arguments = parser.parse_args()
    if arguments.records < arguments.batch:
        parser.error(f"--records={arguments.records} must be at least --batch={arguments.batch}")
    keep_freed_memory()  # as train.py does
    with tempfile.TemporaryDirectory() as folder:
        seconds = loader(Path(folder), arguments.records, arguments.batch, arguments.rounds)
        crops = cropping(Path(folder), arguments.pictures, arguments.size)
    records = arguments.records // arguments.batch * arguments.batch
    raw = next(iter(seconds.values()))
    rows = [[name, records / value, raw / value] for name, value in seconds.items()]
    text = report.table([f"batch {arguments.batch}", "latents/s", "ratio to raw"], rows)
    lines = [[name, arguments.pictures / value] for name, value in crops.items()]
    text += "\n\n" + report.table([f"crops of {arguments.size} pixels", "images/s"], lines)
    report.write("pipeline", text, {"seconds": seconds, "crop_seconds": crops}, arguments)


if __name__ == "__main__":
    main()
