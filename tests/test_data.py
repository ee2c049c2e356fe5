"""What is written is what is read, and bad data is refused in words before anything compiles."""

import dataclasses
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from pom_jax.data import (
    Field,
    Records,
    Synthetic,
    Writer,
    digits,
    open_source,
    pipeline,
    read_manifest,
    records,
)
from pom_jax.data.shards import ShardFile
from pom_jax.data.sources import check_model
from pom_jax.errors import InputError
from pom_jax.sampling.made_with import check_made_with

ROOT = Path(__file__).parents[1]
LATENTS = {
    "mean": Field("float16", (2, 4, 4, 3)),
    "std": Field("float16", (2, 4, 4, 3)),
    "label": Field("int32", ()),
}
DIGITS_MODEL = {"image_size": 8, "channels": 1, "num_classes": 10}


@pytest.fixture
def open_large(monkeypatch):
    """Opens the training split as if it were too large for memory: it is read straight from the shards."""

    def open_split(folder, **options):
        with monkeypatch.context() as patch:
            patch.setattr(records, "SMALL", 0)
            return Records(folder, "train", **options)

    return open_split


def latents(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "mean": rng.normal(3, 2, (count, 2, 4, 4, 3)).astype(np.float16),
        "std": rng.uniform(0.5, 1, (count, 2, 4, 4, 3)).astype(np.float16),
        "label": rng.integers(0, 5, count).astype(np.int32),
    }


def write_latents(out, batches, **options):
    classes = list("abcde")
    with Writer(
        out, name="latents", fields=LATENTS, classes=classes, scale=0.5, shift=0.25, **options
    ) as writer:
        for batch in batches:
            writer.write("train", batch)
        writer.write("test", latents(3, seed=9))
    return writer.manifest


def open_writer(out):
    return Writer(out, name="latents", fields=LATENTS, classes=list("abcde"), scale=0.5, shift=0.25)


def test_a_set_without_a_test_split_is_refused_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(InputError, match=r"split test of .*hold out a few images.*write\(\"test\""),
        open_writer(tmp_path / "set") as writer,
    ):
        writer.write("train", latents(3))
    assert list(tmp_path.iterdir()) == []


def test_a_writer_says_that_it_wants_a_with_block(tmp_path):
    writer = open_writer(tmp_path / "set")
    with pytest.raises(InputError, match=r"with Writer\(\.\.\.\) as writer"):
        writer.write("train", latents(3))
    with writer:
        writer.write("train", latents(3))
        writer.write("test", latents(3))
    with pytest.raises(InputError, match="outside of a `with` block"):
        writer.write("train", latents(3))
    assert len(Records(tmp_path / "set", "train")) == 3


@pytest.mark.smoke
def test_records_come_back_as_written_across_shards(tmp_path, open_large):
    batch = latents(100)
    halves = [{name: array[part] for name, array in batch.items()} for part in (slice(0, 33), slice(33, 100))]
    manifest = write_latents(tmp_path / "set", [*halves, latents(0)], shard_bytes=4000)
    source = Records(tmp_path / "set", "train")
    assert manifest == read_manifest(tmp_path / "set") == source.manifest
    assert len(source) == 100
    assert len(manifest.splits["train"]) > 5
    indices = np.random.default_rng(1).permutation(100)
    for rows in (source.gather(indices), open_large(tmp_path / "set").gather(indices)):
        assert list(rows) == list(batch)
        for name, array in batch.items():
            assert rows[name].dtype == array.dtype
            np.testing.assert_array_equal(rows[name], array[indices])


def test_statistics_are_those_of_the_images_a_model_sees(tmp_path):
    batch = latents(1500)
    manifest = write_latents(tmp_path / "set", [batch])
    x = pipeline.images(batch, jax.random.key(0), manifest)
    np.testing.assert_allclose(manifest.channel_mean, np.mean(x, axis=(0, 1, 2)), atol=0.03)
    np.testing.assert_allclose(manifest.channel_std, np.std(x, axis=(0, 1, 2)), atol=0.03)


@pytest.mark.smoke
def test_digits_are_the_real_ones_and_their_bytes_never_change(digits_dir, tmp_path):
    from sklearn.datasets import load_digits

    train, test = (
        Records(digits_dir, split).gather(np.arange(size)) for split, size in (("train", 1437), ("test", 360))
    )
    ours = np.concatenate([train["mean"], test["mean"]]).reshape(1797, 64)
    theirs, labels = load_digits(return_X_y=True)

    def keyed(images, label):
        return sorted(zip(map(bytes, images.astype(np.uint8)), label.tolist(), strict=True))

    assert keyed(ours, np.concatenate([train["label"], test["label"]])) == keyed(theirs, labels)
    np.testing.assert_array_equal(np.bincount(test["label"]), [36, 36, 35, 37, 36, 37, 36, 36, 35, 36])
    again = digits.prepare(tmp_path / "again")
    assert again == read_manifest(digits_dir)
    for shards in again.splits.values():
        for shard in shards:
            assert (digits_dir / shard.file).read_bytes() == (tmp_path / "again" / shard.file).read_bytes()


def test_synthetic_data_depends_on_the_index_alone():
    source = Synthetic(records=50_000)
    batch = source.gather(np.arange(64))
    assert batch["mean"].shape == batch["std"].shape == (64, 2, 32, 32, 4)
    again = source.gather([40, 3])
    np.testing.assert_array_equal(again["mean"], batch["mean"][[40, 3]])
    np.testing.assert_array_equal(again["label"], batch["label"][[40, 3]])
    assert abs(batch["mean"].mean()) < 0.01
    assert abs(batch["mean"].std() - 1) < 0.01
    labels = source.gather(np.arange(2000))["label"]
    assert 0 <= labels.min() <= labels.max() < 1000
    assert len(np.unique(labels)) > 800
    assert not np.array_equal(Synthetic(seed=1).gather([0])["mean"], batch["mean"][:1])


def test_open_source_fits_the_model(digits_dir):
    shards = {"source": "shards", "dir": str(digits_dir)}
    assert len(open_source(shards, "test", DIGITS_MODEL)) == 360
    one_class = open_source(shards, "train", {**DIGITS_MODEL, "num_classes": 1})
    assert not one_class.gather(np.arange(100))["label"].any()
    synthetic = open_source({"source": "synthetic", "dir": ""}, "train", DIGITS_MODEL)
    assert synthetic.manifest.image_shape == (8, 8, 1)
    check_model(synthetic.manifest, DIGITS_MODEL)


@pytest.mark.parametrize(
    ("data", "model", "words"),
    [
        ({"source": "shard"}, {}, "data.source = 'shard'.*'shards'"),
        ({"dir": ""}, {}, "python prepare.py digits"),
        ({"dir": None}, {"image_size": 32, "channels": 4, "num_classes": 1000}, "32 x 32 x 4.*prepare.py"),
        ({"dir": "nowhere"}, {}, "nowhere does not exist.*python prepare.py digits --out=nowhere"),
        ({}, {"num_classes": 9}, "num_classes is 9.*labels 0 to 9"),
        ({}, {"image_size": 16}, r"\(16, 16, 1\).*\(8, 8, 1\)"),
        ({}, {"channels": 4}, r"\(8, 8, 4\).*\(8, 8, 1\)"),
    ],
)
def test_data_that_does_not_fit_is_refused_in_words(digits_dir, data, model, words):
    data = {"source": "shards", "dir": str(digits_dir), **data}
    with pytest.raises(InputError, match=words):
        open_source(data, "train", {**DIGITS_MODEL, **model})


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def _edit(**changes):
    def edit(folder):
        content = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**content, **changes}))

    return edit


SHARD = "train-00000.array_record"
DAMAGES = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json.*prepare.py"),
    "not JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "not readable as JSON"),
    "foreign manifest": (_edit(format="zip"), "not a manifest of pom_jax.*'zip'"),
    "other version": (_edit(version=99), "version 99.*reads version 1"),
    "fields changed": (_edit(fields={}), "damaged"),
    "scale of NaN": (_edit(scale=float("nan")), "damaged.*scale and shift must be finite"),
    "empty split": (_edit(splits={"train": []}), "split train of .* is empty"),
    "record size": (_edit(record_bytes=70), "68 bytes.*70"),
    "missing shard": (
        lambda folder: (folder / SHARD).unlink(),
        f"{SHARD} is missing; remove .*/digits and make .*prepare.py digits --out=",
    ),
    "truncated shard": (
        lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:100_000]),
        f"{SHARD} has 100000 bytes, the manifest says 262144",
    ),
    "flipped bit": (lambda folder: _flip(folder / SHARD), f"{SHARD} has SHA-256 .*content was changed"),
    "labels outside": (_edit(classes=list("012345678")), "field label: label 9 is not from 0 to 8"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_refused_before_training(digits_dir, tmp_path, damage):
    folder = Path(shutil.copytree(digits_dir, tmp_path / "digits"))
    break_it, words = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(InputError, match=words):
        Records(folder, "train").gather(np.arange(1437))


def test_other_records_under_a_right_checksum_are_refused(tmp_path):
    write_latents(tmp_path / "set", [latents(10)])
    content = json.loads((tmp_path / "set/manifest.json").read_text())
    content["fields"]["mean"]["dtype"] = content["fields"]["std"]["dtype"] = "float32"
    content["record_bytes"] = 4 * 96 * 2 + 4
    (tmp_path / "set/manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"records of 388 bytes.*772"):
        Records(tmp_path / "set", "train")


def test_a_shard_that_changes_later_never_gives_wrong_numbers(tmp_path, open_large):
    write_latents(tmp_path / "set", [latents(300)])
    source = open_large(tmp_path / "set")
    _flip(tmp_path / "set" / SHARD)
    with pytest.raises(InputError, match=r"cannot be read|NaN"):
        source.gather(np.arange(300))


def test_records_are_compared_however_often_they_are_read(tmp_path, open_large):
    batch = latents(500)
    write_latents(tmp_path / "set", [batch], shard_bytes=80_000)
    source = open_large(tmp_path / "set")
    for seed in range(4):  # some of them for the first time, most again, across the blocks of a shard
        indices = np.random.default_rng(seed).integers(0, 500, 400)
        rows = source.gather(indices)
        for name, array in batch.items():
            np.testing.assert_array_equal(rows[name], array[indices])
    source.gather(np.arange(500))
    content = bytearray((tmp_path / "set" / SHARD).read_bytes())
    content[200] ^= 1  # in the first record
    with (tmp_path / "set" / SHARD).open("rb+") as file:
        file.write(content)
    with pytest.raises(InputError, match="not what it was when it was first read"):
        source.gather(np.arange(500))


def test_latents_of_three_channels_tell_their_scale_and_an_encoder_can_be_left_untold(tmp_path):
    write_latents(tmp_path, [latents(2)])
    about = read_manifest(tmp_path)
    assert about.encoding == {}, "pixels"
    content = json.loads((tmp_path / "manifest.json").read_text())
    content["autoencoder"] = f"vae sha256:{64 * '0'}"
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    made = read_manifest(tmp_path).encoding
    assert (made["scale"], made["shift"]) == (about.scale, about.shift)
    with pytest.raises(InputError, match=r'set autoencoder in the manifest\.json of the data to ""'):
        check_made_with("autoencoder", "vae", 64 * "1", made)
    content["autoencoder"] = ""
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    untold = read_manifest(tmp_path)
    assert untold.digest == about.digest
    check_made_with("autoencoder", "vae", 64 * "1", untold.encoding)


def test_a_split_that_fits_stays_in_memory_once_read(tmp_path, open_large, monkeypatch):
    batch = latents(500)
    write_latents(tmp_path / "set", [batch], shard_bytes=80_000)
    size = 500 * read_manifest(tmp_path / "set").record_bytes
    kept, read = (open_large(tmp_path / "set", memory=memory) for memory in (size, size - 1))
    monkeypatch.setattr(records, "SMALL", 0)
    data = {"source": "shards", "dir": tmp_path / "set"}
    asked = open_source(data | {"memory_gb": (size + 1) / 1e9}, "train")
    for source in (kept, read, asked):
        for seed in range(4):
            source.gather(np.random.default_rng(seed).integers(0, 500, 400))
        source.gather(np.arange(500))
    assert len(open_source(data | {"memory_gb": 1e300}, "train")) == 500
    for shard in (tmp_path / "set").glob("*.array_record"):
        shard.write_bytes(b"")
    indices = np.random.default_rng(5).permutation(500)
    for source in (kept, asked):
        for name, values in source.gather(indices).items():
            np.testing.assert_array_equal(values, batch[name][indices])
    with pytest.raises(InputError, match="ends too early"):
        read.gather(indices)


def test_more_shards_than_files_that_may_be_open_are_read(tmp_path, open_large):
    batch = latents(100)
    write_latents(tmp_path / "set", [batch], shard_bytes=1)  # each its own
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, limits[1]))
    try:
        source = open_large(tmp_path / "set")
        for _ in range(2):
            np.testing.assert_array_equal(source.gather(np.arange(100))["mean"], batch["mean"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(InputError, match=r"split train .*needs \d+ open files, two a shard.*larger shards"):
        records.allow_files(2**40, f"split train of {tmp_path}")


def test_names_of_classes_come_back_with_all_their_spaces(digits_dir, tmp_path):
    classes = ("two  spaces", " one", "none", "[ a  b ]")
    manifest = dataclasses.replace(read_manifest(digits_dir), classes=classes)
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    assert read_manifest(tmp_path) == manifest
    assert '"shape": [1, 8, 8, 1]' in manifest.to_json()


def test_checksums_of_a_large_set_are_compared_if_asked_for(tmp_path, open_large):
    write_latents(tmp_path / "set", [latents(300)])
    assert len(open_large(tmp_path / "set", verify=True)) == 300
    _flip(tmp_path / "set" / SHARD)
    assert len(open_large(tmp_path / "set")) == 300
    with pytest.raises(InputError, match=f"{SHARD} has SHA-256"):
        open_large(tmp_path / "set", verify=True)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "mean",
            lambda a: np.where(np.arange(20)[:, None, None, None, None] == 13, np.nan, a),
            "record 33 .*mean.*NaN",
        ),
        ("std", lambda a: a * np.float16(np.inf), "record 20 .*std.*NaN or infinite"),
        ("label", lambda a: np.where(np.arange(20) == 4, 5, a), "record 24 .*label 5 is not from 0 to 4"),
        ("label", lambda a: a - 100, "record 20 .*label.*0 to 4"),
        ("mean", lambda a: a[:, :1], "field mean.*the data set holds"),
        ("mean", lambda a: a[:3], "different numbers of records"),
        ("extra", lambda a: a, "fields .'extra'. are not in this data set"),
    ],
)
def test_bad_values_are_refused_while_writing_and_nothing_is_left(tmp_path, name, change, words):
    bad = latents(20)
    like = bad.get(name, bad["label"])
    bad[name] = change(like).astype(like.dtype)
    with pytest.raises(InputError, match=words):
        write_latents(tmp_path / "set", [latents(20), bad])
    assert list(tmp_path.iterdir()) == []


def test_nan_in_stored_data_names_the_record(tmp_path, open_large):
    folder = tmp_path / "set"
    write_latents(folder, [latents(10)])
    rows = ArrayRecordReader(str(folder / SHARD)).read_all()
    rows[6] = np.float16(np.nan).tobytes() + rows[6][2:]
    shard = ShardFile(folder / SHARD)
    for row in rows:
        shard.append(row)
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["train"] = [dataclasses.asdict(shard.close())]
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"record 6 of split train.*mean: NaN"):
        Records(folder, "train")  # a small set is read at once
    source = open_large(folder)
    source.gather([1, 2])
    for _ in range(2):
        with pytest.raises(InputError, match=r"record 6 of split train.*mean: NaN"):
            source.gather([1, 6, 2])


def test_an_earlier_set_is_replaced_but_nothing_foreign(digits_dir, tmp_path):
    out = Path(shutil.copytree(digits_dir, tmp_path / "digits"))
    digits.prepare(out)
    assert len(Records(out, "train")) == 1437
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"also holds notes\.txt; nothing was changed"):
        digits.prepare(out)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("mine")
    with pytest.raises(InputError, match=r"not a data set named digits.*nothing was changed"):
        digits.prepare(tmp_path / "thesis")
    write_latents(tmp_path / "latents", [latents(3)])
    with pytest.raises(InputError, match="its manifest says latents"):
        digits.prepare(tmp_path / "latents")
    assert (out / "notes.txt").read_text() == (tmp_path / "thesis/chapter.tex").read_text() == "mine"
    assert len(Records(tmp_path / "latents", "train")) == 3
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "link").symlink_to(out)
    (out / "notes.txt").unlink()
    digits.prepare(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(Records(out, "train")) == 1437
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    program = f"""
import resource
from pom_jax.data import digits
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
digits.prepare({str(tmp_path / "digits")!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "InputError: writing" in done.stderr, done.stderr
    assert "GB free" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_prepare_says_what_it_made_and_what_comes_next(tmp_path):
    def run(*arguments):
        command = [sys.executable, "prepare.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    done = run("digits", f"--out={tmp_path}/set")
    assert done.returncode == 0, done.stderr
    for words in (
        "train: 1437 images",
        "test: 360 images",
        "manifest.json",
        f"--config.data.dir={tmp_path}/set",
    ):
        assert words in done.stdout
    (tmp_path / "set/mine.txt").touch()
    refused = run("digits", f"--out={tmp_path}/set")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "mine.txt" in refused.stderr
