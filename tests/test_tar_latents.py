"""The authors' chunks of latents become shards, number by number; mirror images are views of one record."""

import io
import json
import tarfile

import numpy as np
import pytest

import prepare as prepare_command
from pom_jax.data import Records, read_manifest
from pom_jax.data.latents import prepare_latents
from pom_jax.errors import InputError

CLASSES = 5


def draw(count, seed=0):
    """Smooth latents as float: mean, std [count, 2, 3, 8, 8] (an image and its mirror image), labels."""
    rng = np.random.default_rng(seed)
    low = rng.normal(size=(count, 3, 3, 3))
    mean = low.repeat(3, axis=2).repeat(3, axis=3)[:, :, :8, :8]
    mean = np.stack([mean, mean[..., ::-1]], axis=1) + 0.1 * rng.normal(size=(count, 2, 3, 8, 8))
    std = rng.uniform(0.001, 0.01, mean.shape)
    return mean, std, rng.integers(0, CLASSES, count)


def write_chunks(folder, mean, std, labels, *, kind, batch, per_chunk, prefix=""):
    """Writes images as the authors do: a batch, its mirror images, the next batch; cut into chunks."""
    folder.mkdir(exist_ok=True)
    order = []
    for start in range(0, len(labels), batch):
        own = range(start, min(start + batch, len(labels)))
        order += [(i, view) for view in range(mean.shape[1]) for i in own]
    rows = []
    for number, first in enumerate(range(0, len(order), per_chunk)):
        path = folder / f"{prefix}chunk_{number}.tar"
        with tarfile.open(path, "w") as tar:
            for index in range(first, min(first + per_chunk, len(order))):
                i, view = order[index]
                m, s = mean[i, view], 1000 * std[i, view]
                if kind == "int8":
                    m, s = (np.clip(8 * x, -127, 127).astype(np.int8) for x in (m, s))
                else:
                    m, s = m.astype(np.float16), s.astype(np.float16)
                content = io.BytesIO()
                np.savez(content, m, s, np.int64(labels[i]))
                about = tarfile.TarInfo(f"sample_{index}.npz")
                about.size = content.tell()
                content.seek(0)
                tar.addfile(about, content)
        count = min(per_chunk, len(order) - first)
        rows.append({"filename": f"/theirs/{path.name}", "count": count, "quantization_scale": 8.0})
    (folder / f"{prefix}index.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_every_number_comes_back_and_mirror_images_are_views(tmp_path, kind):
    mean, std, labels = draw(23)
    source = write_chunks(tmp_path / "tars", mean, std, labels, kind=kind, batch=4, per_chunk=10)
    held = write_chunks(source, *draw(3, seed=1), kind=kind, batch=4, per_chunk=10, prefix="val_")
    prepare_latents(held, tmp_path / "set", classes=CLASSES)
    manifest = read_manifest(tmp_path / "set")
    assert (manifest.records("train"), manifest.records("test"), manifest.views) == (23, 3, 2)
    assert manifest.fields["mean"].dtype == kind
    batch = Records(tmp_path / "set", "train").gather(np.arange(23))
    np.testing.assert_array_equal(batch["label"], labels)
    for name, values, step in (("mean", mean, 1 / 8), ("std", std, 1 / 8000)):
        ours = batch[name].astype(np.float64) * manifest.fields[name].scale
        bound = step if kind == "int8" else 2**-10 * np.abs(values).max()
        assert np.abs(ours.transpose(0, 1, 4, 2, 3) - values).max() <= bound
    assert (manifest.scale, manifest.shift) == (1, 0)
    seen = np.sqrt(np.mean(mean**2 + std**2, axis=(0, 1, 3, 4)) - np.mean(mean, axis=(0, 1, 3, 4)) ** 2)
    # Their int8 was cut off toward zero: narrower by a twentieth.
    np.testing.assert_allclose(manifest.channel_std, seen, rtol=0.07 if kind == "int8" else 0.001)


def test_samples_without_mirror_images_have_one_view(tmp_path, capsys):
    mean, std, labels = draw(30)
    chunks = {"kind": "float16", "batch": 30, "per_chunk": 16}
    source = write_chunks(tmp_path / "tars", mean[:, :1], std[:, :1], labels, **chunks)
    out = tmp_path / "set"
    arguments = ["latents", f"--source={source}", f"--out={out}", "--classes=5", "--test-share=0.1"]
    assert prepare_command.main(arguments) == 0
    assert "no mirror images among them" in capsys.readouterr().out
    manifest = read_manifest(out)
    assert (manifest.records("train"), manifest.records("test"), manifest.views) == (27, 3, 1)
    train, test = (Records(out, split) for split in ("train", "test"))
    found = np.concatenate([r.gather(np.arange(len(r)))["mean"][:, 0] for r in (train, test)])
    stored = mean[:, 0].astype(np.float16).transpose(0, 2, 3, 1)
    assert sorted(map(bytes, found)) == sorted(np.ascontiguousarray(x).tobytes() for x in stored)
    assert prepare_command.main(arguments) == 0
    assert "there already" in capsys.readouterr().out

    assert prepare_command.main([*arguments, "--classes=6"]) == 2
    assert "classes = 5, now 6" in capsys.readouterr().err
    write_chunks(source, 2 * mean[:, :1], std[:, :1], labels, **chunks)
    assert prepare_command.main(arguments) == 2
    assert "source = 30 samples of" in capsys.readouterr().err


def _cut(folder):
    path = folder / "chunk_1.tar"
    path.write_bytes(path.read_bytes()[:3000])


def _other_sizes(folder):
    mean, std, labels = draw(6)
    small = {"kind": "int8", "batch": 2, "per_chunk": 5}
    other = write_chunks(folder.parent / "other", mean[..., :4], std[..., :4], labels, **small)
    (other / "chunk_1.tar").rename(folder / "chunk_1.tar")


def _index(**changes):
    def edit(folder):
        rows = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps([{**rows[0], **changes}, *rows[1:]]))

    return edit


@pytest.mark.parametrize(
    ("damage", "classes", "words"),
    [
        (lambda folder: (folder / "index.json").unlink(), 5, "index.json cannot be read"),
        (lambda folder: (folder / "index.json").write_text("{}["), 5, "is no list of filename"),
        (lambda folder: (folder / "chunk_0.tar").unlink(), 5, "chunk_0.tar is missing"),
        (_index(quantization_scale=4), 5, r"scales \[4.0, 8.0\]"),
        (_index(count=3), 5, "chunk_0.tar holds 5 samples, the index says 3"),
        (_cut, 5, "chunk_1.tar"),
        (_other_sizes, 5, r"its shape is \(3, 8, 4\), of the first it is \(3, 8, 8\)"),
        (lambda folder: None, 2, r"label \d is not from 0 to 1"),
    ],
)
def test_broken_chunks_are_refused_in_words(tmp_path, damage, classes, words):
    source = write_chunks(tmp_path / "tars", *draw(6), kind="int8", batch=2, per_chunk=5)
    damage(source)
    with pytest.raises(InputError, match=words):
        prepare_latents(source, tmp_path / "set", classes=classes, test_share=0.2)
    assert not (tmp_path / "set").exists()
