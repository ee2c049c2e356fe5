"""Samples on disk, scores in one command that outlives kills, grids of settings, FID during training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict
from PIL import Image

from configs import common
from pom_jax import models
from pom_jax.data import Field, Writer, read_manifest
from pom_jax.errors import InputError
from pom_jax.evaluation import workdir_scores
from pom_jax.evaluation.features import Statistics
from pom_jax.evaluation.frechet import Gaussian
from pom_jax.evaluation.image_scores import score_images
from pom_jax.evaluation.images import open_images
from pom_jax.evaluation.inception import POOL
from pom_jax.evaluation.inception_weights import InceptionWeights
from pom_jax.evaluation.kept_reference import KeptReference
from pom_jax.evaluation.reference import (
    Reference,
    check_size,
    fit_reference,
    open_reference,
    read_reference,
    save_reference,
)
from pom_jax.evaluation.shards import open_shards
from pom_jax.evaluation.sweep import Sweep, make_grid
from pom_jax.evaluation.training_fid import TrainingFid
from pom_jax.evaluation.workdir_scores import score_workdir
from pom_jax.sampling import Generator, SamplingProgress, load
from pom_jax.sampling.bank import Bank, open_bank, write_bank
from pom_jax.sampling.command import sample_to_file
from pom_jax.sampling.upscale import read_low
from pom_jax.training import checkpoint, digest, loop
from pom_jax.training.config import keep_config
from pom_jax.training.metrics import TIME, read_rows
from pom_jax.training.run import make_run as make_training
from pom_jax.training.watchdog import Watchdog
from pom_jax.vae.config import PRESETS
from pom_jax.vae.files import save_autoencoder, weights_sha256
from pom_jax.vae.model import AutoencoderKL
from tests.random_inception import write_random_inception

ROOT = Path(__file__).parent.parent
NUM, PART, STEPS = 8, 2, 150  # steps enough that a kill finds some parts and not all


def recipe(channels: int = 3) -> ConfigDict:
    config = common.base()
    config.name, config.dtype = "tiny", "float32"
    config.model.update({"image_size": 16, "channels": channels, "num_classes": 3, "patch_size": 4})
    config.model.update({"width": 16, "depth": 1})
    config.ema.decays = (0.9, 0.99)
    config.sampling.update({"sampler": "euler", "steps": 2, "guidance": 1.5, "num": 2})
    return config


def make_run(folder: Path, config: ConfigDict, encoding: dict[str, Any] | None = None) -> Path:
    """What train.py leaves, as far as sampling looks at it: random parameters, other ones in each average."""
    network = models.build(config.model, config.dtype)
    shapes = jax.eval_shape(lambda: models.init(network, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def drawn() -> Any:
        return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), shapes)

    keep_config(folder, config, encoding=encoding)
    checkpoints = checkpoint.Checkpoints(folder, keep_last=1, keep_best=0)
    checkpoints.save(7, {"params": drawn(), "ema": [drawn(), drawn()]})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """For other processes: each program is compiled once, here as there, without the slow optimisations."""
    kept = {
        "jax_compilation_cache_dir": (str(tmp_path_factory.mktemp("programs")), None),
        "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
        "jax_disable_most_optimizations": (True, False),
    }
    for turn in (0, 1):
        for name, values in kept.items():
            jax.config.update(name, values[turn])
        compilation_cache.reset_cache()
        if turn == 0:
            yield {**os.environ, **{name.upper(): str(values[0]) for name, values in kept.items()}}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), recipe())


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inception") / "random.safetensors"
    write_random_inception(file)
    return file


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics as pytorch-fid keeps them."""
    file = tmp_path_factory.mktemp("real") / "real.npz"
    np.savez(file, mu=np.zeros(POOL), sigma=np.eye(POOL))
    return file


@pytest.fixture(scope="module")
def sweep(workdir: Path, inception: Path, real: Path, tmp_path_factory: pytest.TempPathFactory):
    """Two guidances scored without interruption, where they are, and what was said."""
    out, said = tmp_path_factory.mktemp("sweep"), []
    settings: dict[str, Any] = {"num": NUM, "part": PART, "steps": [STEPS], "guidances": [1, 2], "out": out}
    found = score_workdir(workdir, real, inception, **settings, say=said.append)
    return found, out, said, settings


def fill(bank: Bank, generator: Generator, **settings: int) -> list[str]:
    said: list[str] = []
    with SamplingProgress() as progress:
        bank.fill(generator, batch_size=1, say=said.append, progress=progress, **settings)  # one program
    return said


def test_parts_are_the_images_of_one_call_and_damaged_ones_are_drawn_again(workdir: Path, tmp_path: Path):
    generator = load(workdir)
    settings: dict[str, Any] = {
        "guidance": 1.5,
        "interval": (0.0, 1.0),
        "sampler": "euler",
        "steps": 2,
        "part": 3,
    }
    bank = open_bank(tmp_path, generator, 8, **settings)
    fill(open_bank(tmp_path, generator, 4, **settings), generator)  # a bank of fewer is the beginning of one
    first = bank.path(0).stat().st_mtime_ns
    older = {name: value for name, value in bank.settings.items() if name != "interval"}
    assert bank.digest == Bank(bank.folder, older, bank.labels, 3).digest, "parts from before there were any"
    assert open_bank(tmp_path, generator, 8, **settings | {"interval": (0.1, 1.0)}).folder != bank.folder
    said = fill(bank, generator, host=1, hosts=2)
    assert "part-00001.npz holds 1 of 3 images; it is drawn again" in said[0]
    assert not bank.path(2).exists()
    fill(bank, generator, host=0, hosts=2)
    assert bank.path(0).stat().st_mtime_ns == first
    assert json.loads((bank.folder / "settings.json").read_text()) == bank.settings

    write_bank(tmp_path / "all.npz", bank)
    with np.load(tmp_path / "all.npz") as content:
        images, labels = content["arr_0"], content["arr_1"]
    np.testing.assert_array_equal(labels, np.arange(8) % 3)
    whole = generator.sample(labels, guidance=1.5, sampler="euler", steps=2)
    assert np.abs(images.astype(int) - whole).max() <= 1  # batches of other sizes round in another way
    assert (images == whole).mean() > 0.99

    other = open_bank(tmp_path, generator, 8, **settings | {"seed": 1})
    fill(other, generator)
    bank.path(0).write_bytes(other.path(0).read_bytes())
    content = bytearray(bank.path(1).read_bytes())
    content[len(content) // 2] ^= 1
    bank.path(1).write_bytes(content)
    bank.path(2).write_bytes(bank.path(2).read_bytes()[:-30])
    said = fill(bank, generator)
    for line, why in zip(said, (f"settings {other.digest}", "Bad CRC-32", "is damaged"), strict=False):
        assert why in line
    np.testing.assert_array_equal(np.concatenate([bank.read(k) for k in range(3)]), images)
    with bank._held(0), pytest.raises(InputError, match="another process draws"):
        fill(bank, generator)
    bank.remove()
    assert not bank.folder.exists()
    assert other.folder.exists()
    generator.config.diffusion.shift = 3.0  # the same parameters, and other images
    assert open_bank(tmp_path, generator, 8, **settings).folder != bank.folder


HOST = """
import sys, time
from pathlib import Path
import numpy as np
from pom_jax.sampling.bank import Bank
labels, number = np.zeros(6, np.int32), int(sys.argv[2])
bank = Bank(Path(sys.argv[1]), {}, labels, 1)
with bank._held(number):
    bank._write(number, np.zeros((1, 4, 4, 3), np.uint8), labels[:1])
    time.sleep(600)
"""


def test_a_host_that_has_ended_is_not_waited_for_and_one_that_draws_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workdir_scores, "WAIT", 0.02)
    monkeypatch.setattr(workdir_scores, "PATIENCE", 0.3)
    bank, images = Bank(tmp_path, {}, np.zeros(6, np.int32), 1), np.zeros((1, 4, 4, 3), np.uint8)
    others = [subprocess.Popen([sys.executable, "-c", HOST, tmp_path, str(n)], cwd=ROOT) for n in (1, 2)]
    said: list[str] = []
    try:
        for number in (0, 3):
            bank._write(number, images, bank.labels[:1])
        while not (bank.path(1).exists() and bank.path(2).exists()):
            time.sleep(0.01)
        ended = threading.Timer(1, others[1].kill)
        ended.start()
        with pytest.raises(InputError, match=r"^1 parts of host 2 of 3 .* the command of host 2 again"):
            workdir_scores._wait_for_parts(bank, 3, said.append)
        assert ended.finished.is_set(), "it was waited for while it lived"
        draws, away = (
            "waiting for 2 of 6 parts: 1 of host 1, which draws; 1 of host 2, which ",
            "does not draw now",
        )
        assert said == [f"{draws}draws", f"{draws}{away}"]
        bank._write(5, images, bank.labels[:1])
        threading.Timer(0.5, bank._write, (4, images, bank.labels[:1])).start()
        workdir_scores._wait_for_parts(bank, 3, said.append)
    finally:
        for process in others:
            process.kill()
            process.wait()


def test_grey_samples_are_written_as_rgb(tmp_path: Path):
    grey = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    bank = Bank(tmp_path / "bank", {}, np.arange(3, dtype=np.int32), 2)
    for number in range(bank.parts):
        bank._write(number, grey[2 * number : 2 * number + 2], bank.labels_of(number))
    write_bank(tmp_path / "all.npz", bank)
    (images,) = open_images(tmp_path / "all.npz").batches(3)
    np.testing.assert_array_equal(images, np.broadcast_to(grey, images.shape))


def test_a_grid_is_a_table_and_a_plot_and_is_scored_once(
    sweep: tuple[Sweep, Path, list[str], dict[str, Any]], workdir: Path, inception: Path, real: Path
):
    found, out, said, settings = sweep
    kept = out / "kept" / "real.npz"
    again = score_workdir(workdir, real, inception, **settings, reference_out=kept, say=said.append)
    assert again is not None
    assert read_reference(kept).protocol in again.found[0].protocol["reference"]
    assert [scores.scores for scores in again.found] == [scores.scores for scores in found.found]
    assert sum(line.startswith("scored before") for line in said) == 2
    best = min(scores.scores["fid"] for scores in found.found)
    rows = [line for line in found.markdown().splitlines() if line.startswith("| 0.9 | euler | 150 |")]
    assert [f"{best:.2f}" in row for row in rows] == [row.endswith("best FID |") for row in rows]
    axis, lines = found.lines()
    assert (axis, list(lines), [x for x, _ in lines["EMA 0.9, euler, 150 steps"]]) == (
        "guidance", ["EMA 0.9, euler, 150 steps"], [1, 2]
    )  # fmt: skip
    assert found.save(out) == ["sweep.md", "sweep.json", "sweep.png"]
    line = found.shared_protocol()
    for words in ("samples 8 of 16 x 16", f"step 7 of {workdir}", "EMA 0.9", "seed 0", "sha256", "jax"):
        assert words in line
    assert "guidance" not in line
    assert json.loads((out / "sweep.json").read_text())["settings"][1]["protocol"]["guidance"] == "2"


def command(workdir: Path, inception: Path, real: Path, out: Path) -> list[str]:
    flags = {"workdir": workdir, "reference": real, "inception": inception, "out": out}
    flags |= {"num": NUM, "part": PART, "steps": STEPS, "guidance": 2}
    return [sys.executable, str(ROOT / "eval.py"), *(f"--{name}={value}" for name, value in flags.items())]


def kill_when(
    ready: Callable[[], bool], arguments: list[str], log: Path, environment: dict[str, str]
) -> None:
    with (
        log.open("w") as file,
        subprocess.Popen(arguments, stdout=file, stderr=file, cwd=ROOT, env=environment) as process,
    ):
        deadline = time.monotonic() + 240
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL, log.read_text()


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def test_killed_while_drawing_and_while_scoring_on_eight_devices_it_ends_with_the_number_of_one(
    sweep: tuple[Sweep, Path, list[str], dict[str, Any]],
    workdir: Path,
    inception: Path,
    real: Path,
    environment: dict[str, str],
    tmp_path: Path,
):
    devices = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = environment | {"XLA_FLAGS": devices}
    arguments, log = command(workdir, inception, real, tmp_path), tmp_path / "log"

    def parts() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("samples/*/part-*.npz")}

    kill_when(lambda: len(parts()) > 0, arguments, log, environment)
    finished = parts()
    assert 0 < len(finished) < NUM // PART
    kill_when(lambda: f"samples: {NUM} images of" in log.read_text(), arguments, log, environment)
    drawn = parts()
    assert len(drawn) == NUM // PART
    assert finished.items() <= drawn.items()
    done = run(arguments, environment)
    assert parts() == drawn
    assert f"{NUM} in" in done.stdout
    assert "0 to draw here" in done.stdout
    assert "device 8 x cpu" in done.stdout
    found, out, *_ = sweep
    score = json.loads((tmp_path / "image_scores.json").read_text())["scores"]["fid"]
    assert score == pytest.approx(found.found[1].scores["fid"], rel=1e-3)
    for path in drawn:
        with np.load(path) as ours, np.load(out / path.relative_to(tmp_path)) as theirs:
            assert np.abs(ours["arr_0"].astype(int) - theirs["arr_0"]).max() <= 1


def test_a_full_disk_while_drawing_and_while_scoring_costs_nothing_that_is_finished(
    sweep: tuple[Sweep, Path, list[str], dict[str, Any]],
    workdir: Path,
    inception: Path,
    real: Path,
    environment: dict[str, str],
    tmp_path: Path,
):
    found, out, _, settings = sweep
    (drawn,) = (out / "samples").glob("*guidance_2_*")
    bank = Path(shutil.copytree(drawn, tmp_path / "samples" / drawn.name))
    last = bank / f"part-{NUM // PART - 1:05d}.npz"
    limited = ["bash", "-c", 'ulimit -f 1; "$@"', "-"]  # 1 KiB a file

    def kept() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    for refused, missing in ((last, True), (tmp_path / "scores", False)):
        if missing:
            last.unlink()
        before = kept()
        done = subprocess.run(
            [*limited, *command(workdir, inception, real, tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
        )
        assert done.returncode == 2, done.stderr
        (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
        assert str(refused) in error
        assert "File too large" in error
        assert "the same command goes on from " in error
        assert kept() == before
        shutil.copy(drawn / last.name, last)
    settings = settings | {"out": tmp_path, "guidances": [2]}
    again = score_workdir(workdir, real, inception, **settings, say=lambda _: None)
    assert again is not None
    assert again.found[0].scores == found.found[1].scores


WATCHED = ("Inception network, reference", "sampler", "Inception network")


def scoring(every: int, inception: Path, pictures: Path) -> ConfigDict:
    """Three steps, and FID of NUM samples after every so many and the last, in two parts."""
    config = recipe()
    config.data.update({"source": "synthetic", "batch_size": 8})
    config.optimizer.warmup_steps = 1
    config.train.update({"steps": 3, "eval_every": 0, "eval_size": 8, "sample_every": 0})
    config.fid.update({"every": every, "num": NUM, "reference": str(pictures), "inception": str(inception)})
    config.fid.update({"sampler": "euler", "steps": 2, "guidance": 1.5, "batch_size": NUM // 2})
    return config


def states_of(folder: Path) -> list[dict[str, str]]:
    return [digest.digests(checkpoint.restore_params(folder, ema=n)[0]) for n in (None, 0, 1)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows, without the fields that are times."""
    return [{name: row[name] for name in row if not name.startswith(TIME)} for row in read_rows(folder)]


def no_grid(*_: Any) -> None:
    """Writes no pictures."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images, which have to go through the network."""
    file = tmp_path_factory.mktemp("pictures") / "real.npz"
    np.savez(file, arr_0=np.random.default_rng(0).integers(0, 256, (NUM, 16, 16, 3), np.uint8))
    return file


@pytest.fixture(scope="module")
def whole(
    inception: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A run with FID after the second and third step, and what its watchdog was told."""
    folder, moved = tmp_path_factory.mktemp("whole") / "run", []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Watchdog, "progress", lambda _, doing: moved.append(doing))
        assert loop.train(scoring(2, inception, pictures), folder, no_grid, make_fid=TrainingFid) == 0
    return folder, moved


def test_fid_during_training_changes_nothing(
    whole: tuple[Path, list[str]], inception: Path, pictures: Path, tmp_path: Path
):
    config, (folder, moved) = scoring(0, inception, pictures), whole
    assert loop.train(config, tmp_path / "without", no_grid, make_fid=TrainingFid) == 0
    assert states_of(tmp_path / "without") == states_of(folder)
    assert {f"FID: {what}, {NUM} of {NUM} images" for what in WATCHED} <= {*moved}
    rows = read_rows(folder)
    assert [f"fid_{NUM}" in row for row in rows] == [False, True, True]
    said = (folder / "log.txt").read_text()
    assert f"step 3 | FID {rows[-1][f'fid_{NUM}']:.2f} of {NUM} samples (euler, 2 steps, guidance 1.5" in said
    config = scoring(2, inception, pictures)
    with pytest.raises(InputError, match="needs make_fid"):
        loop.train(config, tmp_path / "new", no_grid)
    config.fid.reference = "nowhere.npz"
    with pytest.raises(InputError, match=r"nowhere.npz does not exist"):
        loop.train(config, tmp_path / "new", no_grid, make_fid=TrainingFid)
    assert not (tmp_path / "new").exists()


def test_a_signal_does_not_wait_for_fid_which_is_in_its_row_in_the_end(
    whole: tuple[Path, list[str]],
    inception: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    moved: list[str] = []
    stop: tuple[str, int] | None = None  # at these words, when they come so many times

    def progress(_: Watchdog, doing: str) -> None:
        moved.append(doing)
        if (doing, moved.count(doing)) == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Watchdog, "progress", progress)
    config, broken, expected = scoring(2, inception, pictures), tmp_path / "run", rows_of(whole[0])
    part = f"FID: sampler, {NUM // 2} of {NUM} images"
    for stop, saved in ((("step 2", 1), 1), ((part, 1), 2), ((part, 2), 3)):
        moved.clear()
        assert loop.train(config, broken, no_grid, make_fid=TrainingFid) == 143
        assert checkpoint.latest_step(broken) == saved
        last = {name: value for name, value in expected[saved - 1].items() if name != f"fid_{NUM}"}
        assert rows_of(broken) == [*expected[: saved - 1], last], "what was left out before is there by now"
        assert moved.count(f"FID: sampler, {NUM} of {NUM} images") == stop[1] - 1, "the rest was not drawn"
    stop = None
    for _ in range(2):
        assert loop.train(config, broken, no_grid, make_fid=TrainingFid) == 0
    assert rows_of(broken) == expected
    assert states_of(broken) == states_of(whole[0])
    assert (broken / "log.txt").read_text().count("has all 3 steps already") == 1


def test_data_sets_serve_as_reference(digits_dir: Path, tmp_path: Path):
    digits = open_shards(digits_dir)
    assert digits.shape == (1437, 8, 8, 3)
    batch = next(digits.batches(5))
    assert (batch.min(), batch.max(), batch.dtype) == (0, 255, np.uint8)
    opened = open_reference(digits_dir)
    assert (opened.keep, "data checksum" in opened.protocol) == (10_000, True)

    model = AutoencoderKL(PRESETS["tiny"])
    side = 2 * model.config.downsampling
    rng, zeros = np.random.default_rng(0), np.zeros((1, side, side, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), zeros)
    for name in ("other", "vae"):
        variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32) / 10, shapes)
        save_autoencoder(tmp_path / name, model, variables["params"])
    channels = model.config.latent_channels
    scaling = model.config.scaling_factor
    latents = (rng.standard_normal((3, 2, 2, 2, channels)) / scaling).astype(np.float16)
    fields = {"mean": Field("float16", latents.shape[1:]), "std": Field("float16", latents.shape[1:])}
    about: dict[str, Any] = {"name": "latents", "classes": ["all"], "shift": 0.0}
    about["autoencoder"] = f"vae sha256:{weights_sha256(tmp_path / 'vae')}"
    for name, scale in (("set", scaling), ("scaled", 1.0)):  # latents as they are, and times it already
        stored = latents if name == "set" else (latents * scaling).astype(np.float16)
        fields["label"] = Field("int32", ())
        with Writer(tmp_path / name, fields=fields, scale=scale, **about) as writer:
            for split in ("train", "test"):
                batch = {"mean": stored, "std": np.ones_like(latents), "label": np.zeros(3, np.int32)}
                writer.write(split, batch)
    for autoencoder, words in ((None, "holds latents of 2 x 2"), (tmp_path / "other", "made with")):
        with pytest.raises(InputError, match=words):
            open_shards(tmp_path / "set", autoencoder)
    decode = jax.jit(lambda z: model.apply(variables, z, method="decode"))
    pixels = np.asarray(decode(latents[:, 0].astype(np.float32)))
    expected = np.round(127.5 * (np.clip(pixels, -1, 1) + 1))
    assert expected.std() > 10
    for name in ("set", "scaled"):
        found = open_shards(tmp_path / name, tmp_path / "vae")
        assert found.shape == (3, side, side, 3)
        assert np.abs(np.concatenate(list(found.batches(3))) - expected).max() <= 1, name


def test_latents_of_three_channels_are_not_taken_for_pixels(inception: Path, real: Path, tmp_path: Path):
    latents = np.random.default_rng(0).standard_normal((4, 1, 16, 16, 3)).astype(np.float16)
    fields = {"mean": Field("float16", latents.shape[1:]), "label": Field("int32", ())}
    about: dict[str, Any] = {"name": "three", "classes": ["a", "b", "c"], "scale": 1.0, "shift": 0.0}
    with Writer(tmp_path / "set", fields=fields, autoencoder="vae", **about) as writer:
        for split in ("train", "test"):
            writer.write(split, {"mean": latents, "label": np.zeros(4, np.int32)})
    with pytest.raises(InputError, match="holds latents of 16 x 16 x 3: give the autoencoder"):
        open_shards(tmp_path / "set")
    config = recipe()
    config.data.dir = str(tmp_path / "set")
    config.fid.update({"every": 1, "reference": str(real), "inception": str(inception)})
    with pytest.raises(InputError, match=r"fid\.autoencoder is empty: give that of these latents, vae"):
        make_training(config)
    config.fid.every = 0
    run = make_run(tmp_path / "run", config)
    with pytest.raises(InputError, match="draws latents"):
        score_workdir(run, real, inception, num=4, out=tmp_path / "out")
    assert not (tmp_path / "out/samples").exists()
    file = sample_to_file(run, out=str(tmp_path / "latents.npz"), num=2)
    with np.load(file) as found:
        assert (found["arr_0"].dtype, found["arr_0"].shape) == (np.float32, (2, 16, 16, 3))
    assert read_low(file, config.model, pixels=load(run).draws_pixels)[0].dtype == np.float32
    kept = make_run(tmp_path / "kept", config, read_manifest(tmp_path / "set").encoding)
    shutil.rmtree(tmp_path / "set")
    assert not load(kept).draws_pixels
    with pytest.raises(InputError, match=r"draws latents of shape \(16, 16, 3\).* --autoencoder=DIR"):
        score_workdir(kept, real, inception, num=4, out=tmp_path / "out")
    fields = json.loads((kept / "config.json").read_text())
    fields["data"]["encoding"] = None  # by hand
    (kept / "config.json").write_text(json.dumps(fields))
    assert load(kept).draws_pixels, "all that is known is how many channels there are"


def test_a_crop_of_nothing_is_refused(digits_dir: Path, pictures: Path, tmp_path: Path):
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    array = np.zeros((5, 8, 8, 3), np.uint8)
    for sources in ((pictures,), (digits_dir, None), (pictures, digits_dir), (array, pictures)):
        with pytest.raises(InputError, match=r"--crop=16 .* crops pictures of a folder, and an \.npz"):
            check_size(16, *sources)
        check_size(None, *sources)
        check_size(16, tmp_path, *sources)
    with pytest.raises(InputError, match=r"--crop=16 .*such as an array and an array"):
        score_images(array, array, InceptionWeights({}, "mine", "a" * 64), size=16)
    arguments = [f"--reference={pictures}", "--inception=i.pth", f"--images={pictures}", "--crop=16"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "--crop=16 (size=16 in Python) crops pictures" in done.stderr) == (2, True)


def test_a_grid_is_without_guidance_unless_it_is_asked_for():
    config = recipe()
    assert config.sampling.guidance != 1
    assert [setting.guidance for setting in make_grid(config)] == [1]


def test_a_kept_reference_needs_no_images_but_the_same_weights(tmp_path: Path):
    pool = np.random.default_rng(0).standard_normal((5, POOL)).astype(np.float32)
    statistics = Statistics(Gaussian(np.arange(float(POOL)), np.eye(POOL)), None)
    weights = InceptionWeights({}, "mine", "a" * 64)
    save_reference(tmp_path / "kept.npz", Reference(statistics, pool, "somewhere"), weights)
    opened = open_reference(tmp_path / "kept.npz")
    found = fit_reference(opened, weights)
    np.testing.assert_array_equal(found.pool, pool)
    np.testing.assert_array_equal(found.statistics.pool.mean, statistics.pool.mean)
    assert "made of (somewhere), statistics of the file, features of 5 images" in found.protocol

    # What eval.py keeps by itself stands for images that it has put through the network before.
    images, said = open_reference(np.zeros((9, 8, 8, 3), np.uint8)), []
    real = KeptReference(images, weights, tmp_path, None, said.append)
    save_reference(tmp_path / f"{real.digest}.npz", Reference(statistics, pool, "nine images"), weights)
    again = real.fit()
    assert again.protocol == "nine images"
    np.testing.assert_array_equal(again.pool, pool)
    assert f"its statistics are in {tmp_path / real.digest}.npz" in said
    with pytest.raises(InputError, match="mine has bbbb"):
        fit_reference(opened, weights._replace(sha256="b" * 64))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num": 3}, "num=3.*more than 3"),
        ({"seed": -1}, "seed is -1"),
        ({"host": 2, "hosts": 2}, "--host=2 must be from 0 to 1"),
        ({"hosts": 2}, "--hosts=2 goes with --host"),
        ({"host": 0}, "--host=0 goes with --hosts"),
        ({"samplers": ["hoin"]}, "hoin.*heun"),
        ({"steps": [0]}, "steps must be"),
        ({"guidances": [-1.0]}, "guidance must be"),
        ({"guidances": [1.0, 1]}, "each once"),
        ({"emas": [2]}, "--ema=2: this run keeps 2 averages"),
        ({"npz_out": "all.npz", "guidances": [1, 2]}, "one file of samples, and 2 ways"),
        ({"npz_out": "all.png"}, r"are an \.npz"),
        ({"npz_out": f"{'long' * 70}.npz"}, "longer than 240 bytes"),
        ({"reference_out": "real.pkl"}, r"written as \.npz"),
        ({"reference_out": f"{__file__}/real.npz"}, "is not a folder that you may write to"),
        ({"out": f"{__file__}/scores"}, "is not a folder that you may write to"),
        ({"reference": "nowhere"}, "nowhere does not exist"),
        ({"step": 8}, "no checkpoint of step 8"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_drawn(
    workdir: Path, inception: Path, real: Path, tmp_path: Path, settings: dict[str, Any], words: str
):
    given: dict[str, Any] = {"reference": real, "inception": inception, "out": tmp_path / "out"} | settings
    with pytest.raises(InputError, match=words):
        score_workdir(workdir, **given)
    assert not (tmp_path / "out").exists()


def test_a_model_of_latents_needs_its_autoencoder(tmp_path: Path, inception: Path, real: Path):
    run = make_run(tmp_path / "run", recipe(channels=4))
    with pytest.raises(InputError, match=r"draws latents of shape \(16, 16, 4\).* --autoencoder=DIR"):
        score_workdir(run, real, inception)


def test_flags_that_do_not_go_together_are_told(workdir: Path):
    arguments = [f"--workdir={workdir}", "--reference=real.npz", "--seeds=1,2", "--data=digits"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "--workdir with --reference goes without --data, --seeds" in done.stderr
