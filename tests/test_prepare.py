"""Pictures become shards: the same numbers for any workers, hosts and kills; nothing is left out silently."""

import os
import re
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import prepare as prepare_command
from pom_jax.data import Records, pipeline, read_manifest
from pom_jax.data import unfinished as unfinished_room
from pom_jax.data.check import check
from pom_jax.data.encoding import CHUNK, Encoded, Latents, Pixels, _stored
from pom_jax.data.images import plan
from pom_jax.data.making import prepare
from pom_jax.data.manifest import Field, sha256
from pom_jax.data.pictures import centre_crop, open_pictures
from pom_jax.data.recipe import Batch, hold_out
from pom_jax.data.unfinished import Unfinished
from pom_jax.errors import InputError
from pom_jax.sampling.command import spread
from pom_jax.vae import AutoencoderConfig, AutoencoderKL, encode_in_chunks, save_autoencoder, weights_sha256
from pom_jax.vae.names import parameter_shapes
from tests.pictures import photographs, write_crops

ROOT = Path(__file__).parents[1]
SIZE = 32


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """40 crops of 4 photographs, in class folders."""
    return write_crops(tmp_path_factory.mktemp("source") / "photographs", 10)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A small autoencoder of random numbers, its deviations narrow as those of trained ones are."""
    config = AutoencoderConfig(
        block_out_channels=(4, 8), norm_num_groups=2, use_quant_conv=False, mid_block_add_attention=False
    )
    rng = np.random.default_rng(0)
    leaves = {
        path: rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1])))
        for path, shape in parameter_shapes(config).items()
    }
    leaves["encoder", "conv_out", "bias"] = np.repeat([0.0, -6.0], 4)
    leaves["encoder", "conv_out", "kernel"] *= np.repeat([4.0, 0.2], 4)
    folder = tmp_path_factory.mktemp("autoencoder") / "small"
    save_autoencoder(folder, AutoencoderKL(config), traverse_util.unflatten_dict(leaves))
    return folder


def pixel_job(source, *, min_size=0, seed=0):
    pictures = open_pictures(source)
    return plan(pictures, Pixels(SIZE), test_share=0.1, shard_images=8, min_size=min_size, seed=seed)


def make(job, out, **options):
    """The manifest of a set that this command finishes."""
    manifest = prepare(job, out, **options)
    assert manifest is not None
    return manifest


def run(*arguments, **options):
    command = [sys.executable, "prepare.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def crops_of(job, split):
    """What the records of a split are made of, in their order: crops and labels."""
    indices = np.concatenate([piece.indices for piece in job.recipe.pieces if piece.split == split])
    crops = np.stack([job.sources[split].crop(int(index), SIZE) for index in indices])
    return crops, job.sources[split].labels[indices]


@pytest.mark.smoke
def test_latents_are_those_of_crops_and_their_mirror_images(source, autoencoder, tmp_path):
    encoder = Latents(autoencoder, SIZE)
    job = plan(open_pictures(source), encoder, test_share=0.1, shard_images=8)
    manifest = make(job, tmp_path / "set", batch_size=4, workers=2)
    records = Records(tmp_path / "set", "train")
    batch = records.gather(np.arange(len(records)))
    crops, labels = crops_of(job, "train")
    np.testing.assert_array_equal(batch["label"], labels)
    x = crops[:4] / np.float32(127.5) - 1
    with jax.default_matmul_precision("highest"), jax.set_mesh(encoder._mesh):
        moments = encode_in_chunks(encoder._model, encoder._params, np.concatenate([x, x[:, :, ::-1]]), CHUNK)
    for name, values in zip(("mean", "std"), moments, strict=True):
        stored = batch[name][:4]
        assert stored.shape == (4, 2, 16, 16, 4)
        expected = np.stack([values[:4], values[4:]], axis=1)
        np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-5)
    assert (manifest.scale, manifest.shift) == (0.18215, 0)
    assert manifest.autoencoder == f"small sha256:{weights_sha256(autoencoder)}"
    assert (manifest.records("train"), manifest.records("test")) == (36, 4)
    assert len(manifest.splits["train"]) == 5
    mean = batch["mean"].astype(np.float64).mean(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(mean * manifest.scale, manifest.channel_mean, atol=1e-6)

    # int8: nothing is clipped, and the error is what rounding makes of it.
    small = plan(open_pictures(source), Latents(autoencoder, SIZE, "int8"), test_share=0.1, shard_images=8)
    manifest8 = make(small, tmp_path / "int8", batch_size=4)
    assert manifest8.made_by["clipped_numbers"] == "0"
    assert manifest8.record_bytes < 0.51 * manifest.record_bytes
    batch8 = Records(tmp_path / "int8", "train").gather(np.arange(36))
    for name, bound in (("mean", 4 / 127), ("std", 0.125 / 255)):
        values = batch8[name].astype(np.float64) * manifest8.fields[name].scale
        error = (values - batch[name]) * manifest.scale
        assert 0.1 * bound < np.abs(error).max() < 1.02 * bound
    seen8, seen = (
        pipeline.images({"mean": found["mean"]}, jax.random.key(1), about)
        for found, about in ((batch8, manifest8), (batch, manifest))
    )
    difference = np.asarray(seen8 - seen)
    assert 0.014 < np.std(difference) < 0.022
    np.testing.assert_allclose(manifest8.channel_std, manifest.channel_std, rtol=0.05)

    shown = check(small, tmp_path / "int8", 3)
    assert shown.crops.shape == shown.stored.shape == (3, SIZE, SIZE, 3)
    np.testing.assert_array_equal(shown.crops[0], crops[0])
    assert shown.titles == [manifest8.classes[label] for label in batch8["label"][:3]]
    assert 0 < shown.ratio < 40


def test_pixels_are_the_same_for_any_hosts_workers_and_batches(source, tmp_path, capsys):
    job = pixel_job(source)
    whole = make(job, tmp_path / "whole", workers=1, batch_size=3)
    assert "40 pictures in " in capsys.readouterr().out
    assert prepare(job, tmp_path / "shared", hosts=2, host=1) is None
    assert not (tmp_path / "shared").exists()
    shared = make(job, tmp_path / "shared", hosts=2, host=0, workers=3, batch_size=16)
    assert shared == whole == read_manifest(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {
        "manifest.json",
        *(shard.file for shards in whole.splits.values() for shard in shards),
    }
    for split in ("train", "test"):
        records = Records(tmp_path / "shared", split)
        batch = records.gather(np.arange(len(records)))
        crops, labels = crops_of(job, split)
        np.testing.assert_array_equal(batch["mean"], np.stack([crops, crops[:, :, ::-1]], axis=1))
        np.testing.assert_array_equal(batch["label"], labels)
        x = np.asarray(pipeline.images({"mean": batch["mean"][:, :1]}, jax.random.key(0), whole))
        np.testing.assert_allclose(x, crops / 127.5 - 1, atol=1e-6)
    assert check(job, tmp_path / "whole", 2).ratio == np.inf
    assert prepare(job, tmp_path / "whole") == whole  # nothing left to do
    (tmp_path / "whole" / whole.splits["test"][0].file).unlink()
    with pytest.raises(InputError, match=r"test-00000.array_record is missing or cut: remove .*whole"):
        prepare(job, tmp_path / "whole")


def test_a_killed_command_goes_on_and_redoes_no_whole_shard(tmp_path, capsys):
    photograph = Image.fromarray(photographs()["china"])
    (tmp_path / "source").mkdir()
    for number in range(60):
        photograph.save(tmp_path / f"source/{number:03d}.jpg")
    out, growing = tmp_path / "set", tmp_path / "set.unfinished"
    arguments = ["images", f"--source={tmp_path}/source", "--shard-images=5", "--workers=1", "--batch-size=2"]
    command = [sys.executable, "prepare.py", *arguments, "--size=256", f"--out={out}"]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(growing.glob("train-*.json"))) < 3:
        assert running.poll() is None
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not out.exists()
    with pytest.raises(InputError, match=r"is not finished: set\.unfinished beside it"):
        Records(out, "train")
    before = {path.name: path.stat() for path in growing.glob("*.array_record")}
    assert 3 <= len(before) < 13

    assert prepare_command.main([*arguments, "--size=128", f"--out={out}"]) == 2
    assert "size = 256, now 128" in capsys.readouterr().err
    (growing / "train-00001.array_record").write_bytes(b"cut")
    done = run(*arguments, "--size=256", f"--out={out}", "--check=2")
    assert done.returncode == 0, done.stderr
    assert "shards are there already" in done.stdout
    for name, status in before.items():
        unchanged = (out / name).stat().st_mtime_ns == status.st_mtime_ns
        assert unchanged == (name != "train-00001.array_record")
    assert len(Records(out, "train", verify=True)) == 59
    assert min(Image.open(tmp_path / "set-check.png").size) > 512, "two rows and columns, with names"
    assert not growing.exists()
    assert prepare_command.main([*arguments, "--size=256", f"--out={tmp_path}/other/set"]) == 0
    assert (tmp_path / "other/set/manifest.json").read_bytes() == (out / "manifest.json").read_bytes()


@pytest.mark.parametrize("kept", [False, True])
def test_ctrl_c_promises_to_go_on_only_where_something_is_kept(kept, tmp_path):
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); import prepare; "
        "sys.exit(prepare.main(sys.argv[1:]))"
    )
    words, begun = ["moving-digits", "--clips=5000000"], ".set.writing-*/train*"
    if kept:
        (tmp_path / "source").mkdir()
        for number in range(200):
            Image.fromarray(photographs()["china"]).save(tmp_path / f"source/{number:03d}.jpg")
        words, begun = ["images", f"--source={tmp_path}/source", "--size=256"], "set.unfinished/train*"
    command = [sys.executable, "-c", program, *words, f"--out={tmp_path}/set"]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **streams)
    while not list(tmp_path.glob(begun)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 130
    assert said == "stopped" + "; the same command goes on after the last whole shard" * kept
    assert [path.name for path in tmp_path.glob("*set*")] == ["set.unfinished"] * kept


def test_a_full_disk_keeps_whole_shards_and_a_flipped_byte_is_noticed(source, tmp_path):
    out, growing = tmp_path / "set", tmp_path / "set.unfinished"
    job = pixel_job(source)
    assert prepare(job, out, hosts=2, host=0) is None
    kept = {path: path.read_bytes() for path in growing.glob("*.array_record")}
    assert len(kept) == 3
    program = f"""
import resource, sys
import prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
sys.exit(prepare.main(["images", "--source={source}", "--size={SIZE}", "--test-share=0.1",
                       "--shard-images=8", "--out={out}"]))
"""
    full = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert full.returncode == 2, full.stderr
    assert "make room. All whole shards are kept" in full.stderr
    assert {path: path.read_bytes() for path in kept} == kept

    damaged = growing / "train-00000.array_record"
    content = bytearray(kept[damaged])
    content[5000] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"train-00000.array_record is not what was written.*SHA-256"):
        prepare(job, out)
    manifest = make(job, out)
    assert manifest.records("train") == 36
    assert (out / damaged.name).read_bytes() == kept[damaged]


def test_unreadable_and_small_pictures_are_counted_and_listed(source, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    Image.fromarray(photographs()["china"]).save(folder / "china/00.png")
    with (folder / "china/00.png").open("rb+") as file:
        file.truncate(100_000)
    (folder / "flower/03.jpg").write_text("no picture")
    (folder / os.fsdecode(b"flower/\xff.jpg")).write_text("no picture")  # a name that is no UTF-8
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    bomb = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    (folder / "coffee/05.jpg").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(bomb))
    broken = {"china/00.png", "coffee/05.jpg", "flower/03.jpg", os.fsdecode(b"flower/\xff.jpg")}
    paths = [path for path in folder.rglob("*.*") if str(path.relative_to(folder)) not in broken]
    sides = [min(Image.open(path).size) for path in paths]
    limit = sorted(sides)[6]
    (folder / "china/.ipynb_checkpoints").mkdir()
    shutil.copy(folder / "china/02.png", folder / "china/.ipynb_checkpoints")  # hidden
    (folder / "china/again").symlink_to(folder)
    for name in ("china/00.txt", "coffee/01.gif", "coffee/02.gif"):
        (folder / name).touch()
    job = pixel_job(folder, min_size=limit)
    assert job.sources["train"].others == {".txt": 1, ".gif": 2}
    way = r"allow more, and the same command goes on; or repair them, and remove \S+set\.unfinished to begin"
    too_many = rf"(?s)4 pictures cannot be used, more than --max-unreadable=3: {way}.*\n  china/00.png: "
    with pytest.raises(InputError, match=too_many):
        prepare(job, tmp_path / "set", max_unreadable=3)
    so_far = (tmp_path / "set.unfinished/unreadable.txt").read_bytes()
    manifest = make(job, tmp_path / "set")
    small = sum(side < limit for side in sides)
    assert manifest.made_by["unreadable"] == "4"
    assert manifest.made_by["below_min_size"] == str(small) != "0"
    assert manifest.records("train") + manifest.records("test") == 37 - small
    assert (tmp_path / "set/unreadable.txt").read_bytes() == so_far
    lines = os.fsdecode(so_far).splitlines()
    assert [line.split(":")[0] for line in lines] == sorted(broken)
    assert "DecompressionBombError" in lines[1]


def test_where_nothing_is_left_the_message_and_a_file_say_why(source, tmp_path):
    folder = Path(shutil.copytree(source / "china", tmp_path / "source"))
    with pytest.raises(
        InputError, match=r"in split train of .*set: 0 cannot .*, 9 are below --min-size=999\."
    ):
        prepare(pixel_job(folder, min_size=999), tmp_path / "set")
    shutil.rmtree(tmp_path / "set.unfinished")
    (test,) = pixel_job(folder).recipe.pieces[-1].indices
    broken = folder / sorted(path.name for path in folder.iterdir())[test]
    broken.write_text("no picture")
    reason = rf"{broken.name}: UnidentifiedImageError"
    with pytest.raises(InputError, match=rf"(?s)in split test of .*set: 1 cannot be used\. .*\n  {reason}"):
        prepare(pixel_job(folder), tmp_path / "set")
    assert (tmp_path / "set.unfinished/unreadable.txt").read_text().startswith(reason)


class Logarithms(Pixels):
    """Stores the logarithms of pixels, which black ones do not have."""

    def __init__(self, size: int):
        super().__init__(size, mirror=False)
        self.fields = {"mean": Field("float16", (1, *self.crop_shape))}

    def __call__(self, crops: np.ndarray) -> Encoded:
        with np.errstate(divide="ignore"):
            return Encoded({"mean": np.log(crops[:, None]).astype(np.float16)})

    def decode(self, mean: np.ndarray) -> np.ndarray:
        return np.exp(mean.astype(np.float32)).round().astype(np.uint8)


def test_what_encodes_to_infinite_numbers_is_left_out_by_name(tmp_path):
    for number in range(20):
        grey = (0 if number in (4, 13) else 10 + number,) * 3
        Image.new("RGB", (SIZE, SIZE), grey).save(tmp_path / f"{number:02d}.png")
    job = plan(open_pictures(tmp_path), Logarithms(SIZE), test_share=0.1, shard_images=8, seed=1)
    assert not {4, 13} & set(job.recipe.pieces[-1].indices)
    manifest = make(job, tmp_path / "set", batch_size=3)
    assert (manifest.records("train"), manifest.made_by["unreadable"]) == (16, "2")
    lines = (tmp_path / "set/unreadable.txt").read_text().splitlines()
    assert lines == [f"{name}.png: field mean: NaN or infinite values" for name in ("04", "13")]
    shown = check(job, tmp_path / "set", 20)
    np.testing.assert_array_equal(shown.crops, shown.stored)
    assert len(set(shown.crops[:, 0, 0, 0])) == 16


def test_the_check_goes_past_a_shard_without_pictures(source, tmp_path):
    pictures = open_pictures(source)
    options = {"test_share": 0.1, "shard_images": 1}
    first = int(plan(pictures, Pixels(SIZE), **options).recipe.pieces[0].indices[0])
    side = min(pictures.open(first).size)
    job = plan(pictures, Pixels(SIZE), min_size=side + 1, **options)
    make(job, tmp_path / "set")
    shown = check(job, tmp_path / "set", 2)
    assert (shown.crops.shape, shown.ratio) == ((2, SIZE, SIZE, 3), np.inf)


@pytest.mark.parametrize("small", [False, True])
def test_the_check_never_puts_a_record_beside_another_picture(source, tmp_path, small):
    folder = Path(shutil.copytree(source, tmp_path / "photographs"))
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    (folder / "table.csv").write_text("\n".join(["path,label", *(f"{name},{name[0]}" for name in names)]))
    order = pixel_job(folder / "table.csv").recipe.pieces  # of 8 pictures each
    first, second = ([folder / names[index] for index in piece.indices] for piece in order[:2])
    sides = [min(Image.open(path).size) for path in second]
    gone = next(place for place, side in enumerate(sides) if side > min(sides))
    kept = first[2].read_bytes()
    first[2].write_text("no picture")
    job = pixel_job(folder / "table.csv", min_size=min(sides) + 1 if small else 0)
    manifest = make(job, tmp_path / "set")
    count = manifest.records("train")
    assert (manifest.made_by["unreadable"], count < 35) == ("1", small)
    whole = check(job, tmp_path / "set", 36)
    assert (len(whole.crops), whole.ratio) == (count, np.inf)

    first[2].write_bytes(kept)  # repaired since
    first[5].unlink()
    second[gone].write_text("no picture")
    found = check(job, tmp_path / "set", 36)
    assert found.ratio == np.inf
    assert len(found.crops) == count - 2
    if not small:
        assert found.titles == [title for n, title in enumerate(whole.titles) if n not in (4, 7 + gone)]
        (
            tmp_path / "set/left_out.json"
        ).unlink()  # of a set from before there was one: the first shard is unknown
        assert check(job, tmp_path / "set", 36).titles == found.titles[6:]
    for path in folder.rglob("*.*g"):
        path.unlink()
    with pytest.raises(InputError, match=r"--check=36: none of the pictures that .*set was made of can be"):
        check(job, tmp_path / "set", 36)


def test_tables_npz_and_flat_folders_are_the_same_pictures(source, tmp_path):
    folder = open_pictures(source)
    crops = [folder.crop(index, SIZE) for index in range(len(folder))]
    names = [f"{folder.names[i]},{folder.classes[folder.labels[i]]}" for i in range(len(folder))]
    (source.parent / "table.csv").write_text("\n".join(["path,label", *(f"photographs/{n}" for n in names)]))
    table = open_pictures(source.parent / "table.csv")
    assert (table.classes, table.labels.tolist()) == (folder.classes, folder.labels.tolist())
    np.testing.assert_array_equal(table.crop(7, SIZE), crops[7])
    spaces = ["path, label", *(f"photographs/{n} " for n in names)]
    (source.parent / "spaces.csv").write_text("\n".join(spaces))
    assert open_pictures(source.parent / "spaces.csv").classes == folder.classes
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "set.npz", np.array(crops), folder.labels.astype(np.int64))
        npz = open_pictures(tmp_path / "set.npz")
        assert npz.labels.tolist() == folder.labels.tolist()
        np.testing.assert_array_equal([npz.crop(i, SIZE) for i in range(len(npz))], crops)
    flat = open_pictures(source / "china")
    assert (flat.classes, len(flat)) == (("all",), 10)
    np.testing.assert_array_equal(flat.crop(0, SIZE), crops[10])
    manifest = make(plan(flat, Pixels(SIZE), test_pictures=flat), tmp_path / "flat")
    assert (manifest.records("train"), manifest.records("test")) == (10, 10)


def test_what_is_held_out_is_even_over_the_classes():
    labels = np.repeat(np.arange(7), [5, 10, 50, 100, 20, 1, 64])
    train, test = hold_out(labels, 0.1, np.random.default_rng(3))
    np.testing.assert_array_equal(np.sort([*train, *test]), np.arange(250))
    assert len(test) == 25
    assert np.all(np.abs(np.bincount(labels[test], minlength=7) - 0.1 * np.bincount(labels)) < 1)
    assert not np.array_equal(labels[train], np.sort(labels[train]))
    other = hold_out(labels, 0.1, np.random.default_rng(4))[1]
    assert set(other.tolist()) != set(test.tolist())


def test_no_shard_is_closed_without_a_batch_that_failed(source, tmp_path):
    job = pixel_job(source)
    crops = np.zeros((4, 2, SIZE, SIZE, 3), np.uint8)
    with Unfinished(tmp_path / "set", job.recipe) as unfinished:
        for label, words in ((99, "label 99 is not from 0 to 3"), (0, "has failed before")):
            arrays = {"mean": crops, "label": np.full(4, label, np.int32)}
            with pytest.raises(InputError, match=words):
                unfinished.write(Batch(job.recipe.pieces[0], arrays, count=4, last=label == 0))
        assert len(unfinished.missing()) == len(job.recipe.pieces)


def test_hosts_that_end_at_once_and_hosts_that_were_killed_at_once_get_along(source, tmp_path, monkeypatch):
    out, growing = tmp_path / "set", tmp_path / "set.unfinished"
    growing.mkdir()
    for name in ("host-0-of-2.lock", "plan.json.1a2b.part"):  # of a host killed while it began
        (growing / name).touch()
    job = pixel_job(source)
    assert prepare(job, out, hosts=2, host=1) is None

    def compare(path):
        """While host 0 compares its first shard, another does the same and ends."""
        monkeypatch.undo()
        with Unfinished(out, job.recipe, host=1, hosts=2) as other:
            assert other.finish() is not None
        return sha256(path)

    monkeypatch.setattr(unfinished_room, "sha256", compare)
    assert make(job, out, hosts=2, host=0) == read_manifest(out)
    assert sorted(path.suffix for path in out.iterdir()) == [".array_record"] * 6 + [".json"]


def test_a_link_to_another_disk_stays_one(source, tmp_path):
    (tmp_path / "disk/set").mkdir(parents=True)
    (tmp_path / "set").symlink_to(tmp_path / "disk/set")
    job = pixel_job(source)
    assert prepare(job, tmp_path / "set", hosts=2, host=0) is None
    assert (tmp_path / "disk/set.unfinished").is_dir()
    with pytest.raises(InputError, match=r"is not finished: set\.unfinished beside it"):
        Records(tmp_path / "set", "train")
    make(job, tmp_path / "set")
    assert (tmp_path / "set").is_symlink()
    assert len(Records(tmp_path / "disk/set", "train")) == 36


def test_the_command_in_the_manifest_makes_the_same_set(source, tmp_path, capsys):
    words = ["images", "--source", str(source), "--check", "--size=32", "--test-share=0.1"]
    assert prepare_command.main([*words, "--out", str(tmp_path / "a b"), "--host=0", "--hosts", "1"]) == 0
    command = f"python prepare.py images --source {source} --size=32 --test-share=0.1"
    assert read_manifest(tmp_path / "a b").made_by["command"] == command
    following = shlex.split(capsys.readouterr().out.split("next: ")[1])
    sizes = ["--config.model.channels=3", "--config.model.num_classes=4"]  # 32 pixels are the recipe's own
    assert following[2:] == [
        "--config=configs/dipom_s2.py",
        f"--config.data.dir={tmp_path}/a b",
        *sizes,
        "--workdir=runs/a b",
    ]
    width, height = Image.open(tmp_path / "a b-check.png").size
    assert (width > 8 * 64, height > 2 * 64) == (True, True), "small images are magnified"
    assert prepare_command.main([*words, f"--out={source}/set"]) == 2
    assert "is in --source=" in capsys.readouterr().err


def test_numbers_that_name_other_classes_are_told(source, tmp_path, capsys):
    names = sorted(str(path.relative_to(source.parent)) for path in source.rglob("*.*"))
    table = source.parent / "numbers.csv"
    for first, said in ((0, False), (1, True)):
        labels = (("astronaut", "china", "coffee", "flower").index(name.split("/")[1]) for name in names)
        rows = [f"{name},{label + first}" for name, label in zip(names, labels, strict=True)]
        table.write_text("\n".join(["path,label", *rows]))
        arguments = ["images", f"--source={table}", "--size=32", "--test-share=0.1"]
        assert prepare_command.main([*arguments, f"--out={tmp_path}/{first}"]) == 0
        out = capsys.readouterr().out
        note = 'note: class 0 is named "1", class 1 is named "2", class 2 is named "3" (4 such names); '
        assert (note in out, "note: " in out) == (said, said)
    classes = read_manifest(tmp_path / "1").classes
    assert (classes, spread(classes, ["0"], 1).tolist()) == (("1", "2", "3", "4"), [0])


def test_a_tilde_is_the_home_folder(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/crops").symlink_to(source)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    words = ["images", "--source=~/crops", "--test-source=~/crops", "--size=32", "--out=~/set"]
    assert prepare_command.main(words) == 0
    assert read_manifest(tmp_path / "home/set").records("train") == 40
    assert not Path("~").exists()
    with pytest.raises(SystemExit, match="2"):
        prepare_command.main([*words[:-1], "--out=gs://bucket/set"])
    assert "--out: gs://bucket/set is no folder of a file system; mount the bucket" in capsys.readouterr().err


def test_what_int8_cannot_hold_is_counted_and_nan_with_it():
    fields = (("mean", Field("int8", (2, 1, 1, 1), 0.1)), ("std", Field("uint8", (2, 1, 1, 1), 0.1)))
    mean = np.array([1.0, 13, np.nan, -12.7, 2, 3], np.float32).reshape(6, 1, 1, 1)
    arrays, clipped = _stored(fields, (mean, abs(mean)))
    assert clipped.tolist() == [0, 1, 2]
    assert arrays["mean"][:2].ravel().tolist() == [10, -127, 127, 20]


def test_two_commands_at_one_folder_and_foreign_folders_are_refused(source, tmp_path):
    job = pixel_job(source)
    with (
        Unfinished(tmp_path / "set", job.recipe),
        pytest.raises(InputError, match="another command is making"),
    ):
        prepare(job, tmp_path / "set")
    with (
        Unfinished(tmp_path / "set", job.recipe, host=1, hosts=2),
        pytest.raises(InputError, match=r"another command is making .*host 0 of 1.*all the same --hosts"),
    ):
        prepare(job, tmp_path / "set")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("mine")
    with pytest.raises(InputError, match="holds other things; nothing was changed"):
        prepare(job, tmp_path / "thesis")
    (tmp_path / "thesis").rename(tmp_path / "other.unfinished")
    with pytest.raises(InputError, match="is no unfinished data set"):
        prepare(job, tmp_path / "other")
    assert (tmp_path / "other.unfinished/chapter.tex").read_text() == "mine"
    prepare(job, tmp_path / "set")
    with pytest.raises(InputError, match=r"was made with .*seed = 0, now 1"):
        prepare(pixel_job(source, seed=1), tmp_path / "set")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source=nowhere", "--size=32"], "nowhere does not exist.*folder of pictures"),
        (["--source=both", "--size=32"], "holds both pictures .a.png. and folders .b."),
        (["--source=hollow", "--size=32"], "class folder .*hollow/x holds no pictures"),
        (["--source=no.csv", "--size=32"], "needs a first line with the columns path,label"),
        (["--source=class.csv", "--size=32"], "has the columns path, class: name one of them label"),
        (["--source=no.npz", "--size=32"], "no whole npz with images in arr_0"),
        (["--source=float.npz", "--size=32"], "arr_0 is float64.*images are uint8"),
        (["--source=good", "--size=0"], "--size=0"),
        (
            ["--source=good", "--size=32", "--test-share=0"],
            "--test-share=0 of 8 pictures holds out 0.*0.1 and 1",
        ),
        (["--source=good", "--size=32", "--test-source=good/u"], "--test-source has 1 classes"),
        (
            ["--source=good", "--size=32", "--test-share=0.5", "--hosts=2", "--host=2"],
            "--host=2 must be from 0 to 1",
        ),
        (["--source=good", "--size=32", "--hosts=0", "--host=0"], "--hosts=0 must be at least 1"),
        (["--source=good", "--size=32", "--test-share=0.5", "--hosts=2"], "--hosts=2 goes with --host"),
        (["--source=good", "--size=32", "--moments=int8"], "--moments=int8 is of latents"),
        (["--source=good", "--size=32", "--test-share=0.5", "--workers=0"], "--workers=0"),
        (["--source=good", "--size=32", "--check=0"], "--check=0"),
        (["--source=good", "--size=35", "--autoencoder=AE"], "--size=35.* multiple of 2"),
        (["--source=good", "--size=32", "--autoencoder=AE", "--moments=int4"], "--moments = 'int4'.*float16"),
        (["--source=good", "--size=32", "--autoencoder=good"], "good has no diffusion_pytorch_model"),
    ],
)
def test_bad_flags_are_refused_in_words(autoencoder, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    for name in ("both/a.png", "both/b/c.png", *(f"good/{c}/{n}.png" for c in "uv" for n in range(4))):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(name)
    Path("hollow/x").mkdir(parents=True)
    Path("no.csv").write_text("file\na.png\n")
    Path("class.csv").write_text("path,class\na.png,a\n")
    Path("no.npz").write_text("PK")
    np.savez("float.npz", np.zeros((1, 8, 8, 3)))

    code = prepare_command.main(
        ["images", *(word.replace("AE", str(autoencoder)) for word in arguments), "--out=set"]
    )
    error = capsys.readouterr().err
    assert code == 2
    assert re.search(words, error), error
    assert not Path("set").exists()
    assert not Path("set.unfinished").exists()


def write_deep_png(path: Path, pixels: np.ndarray) -> None:
    """A PNG of 16 bits a channel, which Pillow reads but does not write: pixels [H, W, 3] uint16."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    )
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def test_of_16_bits_in_colour_the_upper_8_are_taken(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (16, 16, 3), np.uint16)
    write_deep_png(tmp_path / "deep.png", pixels)
    np.testing.assert_array_equal(open_pictures(tmp_path).crop(0, 16), pixels >> 8)


def test_the_crop_is_of_the_middle():
    china = Image.fromarray(photographs()["china"])  # 640 x 427
    assert centre_crop(china, 64).shape == (64, 64, 3)
    np.testing.assert_array_equal(centre_crop(china, 427), np.asarray(china)[:, 106:533])
    with pytest.raises(ValueError, match="mode I;16 has more than 8 bits a channel"):
        centre_crop(Image.fromarray(np.zeros((9, 9), np.uint16)), 8)
    with pytest.raises(ValueError, match="one side is more than 100 times the other"):
        centre_crop(Image.new("RGB", (1, 60_000)), 256)
