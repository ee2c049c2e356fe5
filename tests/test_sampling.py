"""From parameters to pictures: what a generator and its files promise."""

import dataclasses
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageSequence
from rich.console import Console

import pom_jax
from configs import common
from pom_jax import models, vae
from pom_jax.diffusion import SDE
from pom_jax.errors import InputError
from pom_jax.sampling import Generator, SamplingProgress, grid, write
from pom_jax.sampling.command import sample_to_file, spread
from pom_jax.sampling.decode import load_decoder
from pom_jax.sampling.writers import replace_file
from pom_jax.training import checkpoint
from pom_jax.training.config import keep_config
from pom_jax.training.preview import to_pixels

ROOT = Path(__file__).parent.parent
TINY = {
    "image_size": 4,
    "channels": 1,
    "num_classes": 3,
    "patch_size": 2,
    "width": 8,
    "depth": 1,
    "mixer": "pom",
    "form": "product",
    "degree": 2,
    "expansion": 1,
    "ffn_expansion": 2,
}


def tiny_config(**model) -> ConfigDict:
    config = common.base()
    config.name, config.dtype = "tiny", "float32"
    config.model.update(TINY | model)
    config.data.dir = "nowhere"
    config.sampling.update({"sampler": "heun", "steps": 3, "guidance": 2.0, "num": 6})
    return config


def random_params(model, seed=0):
    """Unlike fresh ones, these make every part of the network count."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
    return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(x.dtype), shapes)


def tiny_generator(**model) -> Generator:
    config = tiny_config(**model)
    network = models.build(config.model, config.dtype)
    return Generator(config, network, random_params(network))


@pytest.fixture(scope="module")
def generator():
    return tiny_generator()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What a finished run of train.py leaves, as far as sampling looks at it."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config()
    network = models.build(config.model, config.dtype)
    keep_config(folder, config)
    checkpoints = checkpoint.Checkpoints(folder, keep_last=2, keep_best=0)
    for step in (10, 20):
        checkpoints.save(
            step, {"params": random_params(network, step), "ema": [random_params(network, step + 1)]}
        )
    checkpoints.close()
    return folder


@pytest.mark.smoke
@pytest.mark.parametrize("sampler", ["heun", SDE()])
def test_an_image_does_not_depend_on_how_many_are_drawn_at_once(generator, sampler):
    labels = [0, 1, 2, 1, 0, 2, 2]
    whole = generator.sample_array(labels, sampler=sampler, seed=5)
    assert whole.shape == (7, 4, 4, 1)
    assert whole.dtype == np.float32
    by_three = generator.sample_array(labels, sampler=sampler, seed=5, batch_size=3)
    np.testing.assert_allclose(by_three, whole, atol=1e-5)
    np.testing.assert_allclose(
        generator.sample_array(labels[:2], sampler=sampler, seed=5), whole[:2], atol=1e-5
    )
    assert np.abs(generator.sample_array(labels, sampler=sampler, seed=6) - whole).max() > 0.1


def test_the_label_and_the_guidance_matter(generator):
    one = generator.sample_array([0, 0], guidance=1.0)
    assert np.abs(generator.sample_array([1, 1], guidance=1.0) - one).max() > 1e-3
    assert np.abs(generator.sample_array([0, 0], guidance=3.0) - one).max() > 1e-3
    own = generator.sample_array([0, 0])
    np.testing.assert_array_equal(generator.sample_array([0, 0], guidance=2.0, steps=3, sampler="heun"), own)
    without = generator.sample_array([0, 0], guidance=0.0)
    np.testing.assert_allclose(generator.sample_array([1, 1], guidance=0.0), without, atol=1e-5)


def test_guidance_acts_in_the_interval_of_the_run(generator, workdir, tmp_path, capsys):
    config = tiny_config()
    config.sampling.guidance_interval = (0.4, 1.0)
    late = Generator(config, generator.model, generator.params)
    labels = [0, 1, 2]
    own = late.sample_array(labels)
    np.testing.assert_array_equal(generator.sample_array(labels, interval=[0.4, 1]), own)
    everywhere = generator.sample_array(labels)
    np.testing.assert_array_equal(late.sample_array(labels, interval=(0, 1)), everywhere)
    assert np.abs(own - everywhere).max() > 1e-3
    keep_config(shutil.copytree(workdir, tmp_path / "late"), config)
    assert sample_to_file(tmp_path / "late").name == "step_0000020_guidance_2_seed_0.png"
    assert "guidance 2 at times 0.4 to 1, seed 0" in capsys.readouterr().out
    with config.unlocked():
        del config.sampling.guidance_interval  # as in a run that is older
    np.testing.assert_array_equal(
        Generator(config, generator.model, generator.params).sample_array(labels), everywhere
    )
    name = sample_to_file(workdir, interval=[0.4, 1.0]).name
    assert name == "step_0000020_guidance_2_seed_0_times_0.4_to_1.png"
    assert "guidance 2 at times 0.4 to 1, seed 0" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"guidance interval is \(low, high\).* got \(0\.4,\)"):
        sample_to_file(workdir, interval=[0.4])


def test_a_program_is_compiled_once(generator):
    class Count:
        compilations = images = 0

        def compiling(self, what):
            self.compilations += 1

        def compiled(self, seconds):
            assert seconds > 0

        def drawn(self, images, total):
            assert total == 5
            self.images = images

    count = Count()
    for guidance in (2.0, 3.0, 4.0):
        generator.sample([0] * 5, steps=2, guidance=guidance, batch_size=2, progress=count)
    assert (count.compilations, count.images) == (1, 5)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_says_what_happens_on_a_terminal_and_elsewhere(generator, terminal):
    shown = io.StringIO()
    environment = {"TERM": "xterm"}  # whatever the terminal of this test is
    console = Console(file=shown, force_terminal=terminal, highlight=False, _environ=environment)
    with SamplingProgress(console) as progress:
        generator.sample([0, 1, 2], steps=1, batch_size=2, progress=progress)
        progress.compiling("sampler")
    lines = shown.getvalue()
    assert "compiling the sampler" in lines
    assert "3 images in" in lines
    assert ("\x1b[" in lines) == terminal


def test_pixels_come_out_as_they_went_in(generator):
    x = generator.sample_array([0, 1])
    images = generator.sample([0, 1])
    assert images.dtype == np.uint8
    np.testing.assert_allclose(images, 127.5 * (np.clip(x, -1, 1) + 1), atol=0.51)


def test_a_trajectory_goes_from_the_noise_to_the_image(generator):
    labels = [0, 1, 2]
    frames = generator.sample_array(labels, trajectory=True, batch_size=2)
    assert frames.shape == (4, 3, 4, 4, 1)
    np.testing.assert_allclose(frames[-1], generator.sample_array(labels), atol=1e-5)
    assert 0.5 < frames[0].std() < 1.5


def test_latents_are_decoded_where_there_is_an_autoencoder(tmp_path):
    latents = tiny_generator(channels=4)
    assert latents.sample_array([0]).shape == (1, 4, 4, 4)
    with pytest.raises(InputError, match="--autoencoder=DIR"):
        latents.sample([0])
    config = dataclasses.replace(vae.PRESETS["tiny"], scaling_factor=0.5, shift_factor=0.25)
    autoencoder: Any = vae.AutoencoderKL(config)
    shapes = jax.eval_shape(autoencoder.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: (0.2 * rng.normal(size=s.shape)).astype(np.float32), shapes["params"])
    vae.save_autoencoder(tmp_path / "vae", autoencoder, params)
    latents.decoder = load_decoder(tmp_path / "vae", 4)
    out = io.StringIO()
    with SamplingProgress(Console(file=out)) as progress:
        steps = latents.sample([0, 1], trajectory=True, progress=progress)
    side = 4 * config.downsampling
    assert steps.shape == (latents.config.sampling.steps + 1, 2, side, side, 3)
    x = latents.sample_array([0, 1])
    expected = jax.jit(lambda x: autoencoder.apply({"params": params}, x / 0.5 + 0.25, method="decode"))(x)
    assert np.ptp(steps[-1]) > 100
    np.testing.assert_allclose(steps[-1], to_pixels(expected), atol=1)
    assert "compiling the decoder" in out.getvalue()
    pixels = steps[-1] / np.float32(127.5) - 1
    mean, _ = jax.jit(lambda x: autoencoder.apply({"params": params}, x, method="encode"))(pixels)
    found = latents.decoder.encode(steps[-1][None])
    np.testing.assert_allclose(found, (np.asarray(mean)[None] - 0.25) * 0.5, atol=1e-4)
    with pytest.raises(InputError, match=r"latents of 4 channels, the model draws 16"):
        load_decoder(tmp_path / "vae", 16)

    # A run keeps which autoencoder its latents are of.
    digest = vae.weights_sha256(tmp_path / "vae")
    for name, made in {"own": f"vae sha256:{digest}", "other": f"vae sha256:{64 * '0'}"}.items():
        keep_config(tmp_path / name, latents.config, encoding={"autoencoder": made})
        checkpoints = checkpoint.Checkpoints(tmp_path / name, keep_last=1, keep_best=0)
        checkpoints.save(1, {"params": latents.params, "ema": [latents.params]})
        checkpoints.close()
    found = pom_jax.load(tmp_path / "own", autoencoder=tmp_path / "vae", say=pytest.fail)
    np.testing.assert_allclose(found.sample([0, 1]), steps[-1], atol=1)
    with pytest.raises(InputError, match=f"sha256 {digest}, .* was made with vae sha256:0"):
        pom_jax.load(tmp_path / "other", autoencoder=tmp_path / "vae")


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([3], {}, "3 classes"),
        ([-1], {}, "3 classes"),
        ([], {}, "at least one"),
        ([0.5], {}, "whole number"),
        ([[0]], {}, "row"),
        ([0], {"guidance": -1.0}, "guidance"),
        ([0], {"guidance": float("nan")}, "guidance"),
        ([0], {"steps": 0}, "steps"),
        ([0], {"sampler": "hein"}, "Did you mean 'heun'"),
        ([0], {"seed": -1}, "seed"),
        ([0], {"batch_size": 0}, "batch_size"),
        ([0], {"interval": (0.9, 0.1)}, "interval"),
        ([0], {"schedule": "lin"}, "schedule"),
    ],
)
def test_mistakes_are_explained_before_anything_compiles(generator, labels, settings, message):
    class Never:
        def compiling(self, what):
            raise AssertionError("compiled")

    with pytest.raises(InputError, match=message):
        generator.sample(labels, progress=Never(), **settings)


def test_three_lines_of_python_from_a_workdir_to_a_picture(workdir):
    generator = pom_jax.load(workdir)
    images = generator.sample([0, 1, 2], guidance=1.5)
    assert pom_jax.show(images, [0, 1, 2]).size[0] > 3 * 40
    assert generator.step == 20
    asked: list[tuple[dict[str, Any], int]] = [({}, 21), ({"ema": None}, 20), ({"step": 10}, 11)]
    for kwargs, seed in asked:
        loaded, expected = pom_jax.load(workdir, **kwargs), random_params(generator.model, seed)
        jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"step": 15}, "no checkpoint of step 15"),
        ({"ema": 3}, r"--ema=3: this run keeps one average, --ema=0 \(decay 0\.999\); --ema=-1"),
        ({"out": "grid.jpg"}, "ending"),
        ({"num": 0}, "at least one"),
        ({"classes": ["3"]}, "not among the classes"),
        ({"classes": ["one"]}, "not a class number.*the classes are 0 to 2"),
        ({"classes": []}, "names no class"),
        ({"classes": ["2-1"]}, "not among the classes"),
        ({"guidance": -2.0}, "guidance"),
        ({"steps": 0}, "steps"),
        ({"steps": [2, 0]}, "steps"),
        ({"sampler": ["euler", "heum"]}, "heum"),
        ({"guidance": [1.0, -2.0]}, "guidance"),
        ({"guidance": [1.0, 2.0], "steps": [1, 2]}, "--guidance and --steps have several values"),
        ({"per_class": 2, "num": 6}, "without --num"),
        ({"per_class": 2, "steps": [1, 2]}, "one value"),
        ({"per_class": 0}, "at least one"),
        ({"per_class": 2, "out": "sheet.npz"}, "a sheet is a picture"),
        ({"sampler": ["euler", "heun"], "out": "sheet.gif"}, "a sheet is a picture"),
    ],
)
def test_mistakes_on_the_command_line_are_explained(workdir, tmp_path, capsys, kwargs, message):
    kwargs = {"out": str(tmp_path / "grid.png"), "seed": 0} | kwargs
    with pytest.raises(InputError, match=message):
        sample_to_file(workdir, **kwargs)
    assert not any(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_no_workdir_is_explained(tmp_path):
    with pytest.raises(InputError, match="not a workdir"):
        pom_jax.load(tmp_path)


def test_every_kind_of_file(workdir, tmp_path):
    def draw(name):
        return sample_to_file(workdir, out=str(tmp_path / "new" / name), classes=["0-2"], num=6, seed=1)

    with np.load(draw("s.npz")) as arrays:
        assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((6, 4, 4, 1), np.uint8)
        np.testing.assert_array_equal(arrays["arr_1"], [0, 1, 2, 0, 1, 2])
        np.testing.assert_array_equal(
            arrays["arr_0"], pom_jax.load(workdir).sample([0, 1, 2, 0, 1, 2], seed=1)
        )
    assert Image.open(draw("s.png")).size[0] > 100
    for name in ("s.gif", "s.webp"):
        assert len(list(ImageSequence.Iterator(Image.open(draw(name))))) == 4
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["s.gif", "s.npz", "s.png", "s.webp"]


def test_a_sheet_has_a_row_for_each_class_and_a_column_for_each_setting(workdir, tmp_path):
    generator = pom_jax.load(workdir)

    def tiles(file, rows, columns):
        """[rows, columns, 48, 48]: the images of a picture, whose cells end at its right and lower edges."""
        picture = np.asarray(Image.open(file))
        cells = picture[-rows * (48 + 4) :, -columns * (48 + 4) :].reshape(rows, 52, columns, 52)
        return cells.transpose(0, 2, 1, 3)[:, :, :48, :48]

    scales = sample_to_file(workdir, guidance=[0.0, 1.0, 3.0], classes=["2", "0"])
    assert scales.name == "step_0000020_guidance_0-1-3_seed_0_2_images_classes_2+0.png"
    by_scale = np.stack([generator.sample([2, 0], guidance=scale) for scale in (0.0, 1.0, 3.0)], axis=1)
    np.testing.assert_array_equal(tiles(scales, 2, 3), by_scale[..., 0].repeat(12, 2).repeat(12, 3))

    classes = sample_to_file(workdir, per_class=4, out=str(tmp_path / "sheet.png"))
    by_class = generator.sample(np.repeat([0, 1, 2], 4)).reshape(3, 4, 4, 4)
    np.testing.assert_array_equal(tiles(classes, 3, 4), by_class.repeat(12, 2).repeat(12, 3))

    assert sample_to_file(workdir, sampler=["euler", "ddim"], num=1).name.endswith("_euler-ddim_1_images.png")
    assert (
        sample_to_file(workdir, per_class=4).name
        == "step_0000020_guidance_2_seed_0_4_per_class_3_classes.png"
    )


def test_names_that_do_not_fit_are_shortened_and_those_of_a_sheet_must_go_with_it():
    images = np.zeros((2, 3, 8, 8, 1), np.uint8)
    short, long = (
        pom_jax.sampling.sheet(images, ["a", "b"], ["1", name, "3"]) for name in ("2", "wide " * 9)
    )
    assert short.size == long.size
    with pytest.raises(InputError, match=r"2 rows and 2 columns needs images \[2, 2, H, W, C\]; got \(2, 3"):
        pom_jax.sampling.sheet(images, ["a", "b"], ["1", "2"])


def test_images_that_are_not_finite_are_said(generator: Generator) -> None:
    params = jax.tree.map(lambda leaf: leaf * np.nan, generator.params)
    broken = Generator(generator.config, generator.model, params)
    with pytest.raises(InputError, match=r"guidance 1 and 1 steps gave values that are not finite"):
        broken.sample([0], guidance=1, steps=1)


def test_classes_are_shared_out():
    ten, thousand = ([str(number) for number in range(count)] for count in (10, 1000))
    np.testing.assert_array_equal(spread(ten[:3], None, 5), [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(spread(thousand, None, 4), [0, 250, 500, 750])
    np.testing.assert_array_equal(spread(ten, ["7", "2-3"], 5), [7, 2, 3, 7, 2])
    np.testing.assert_array_equal(spread(ten, ["7", " 2-3"], 1), [7, 2, 3])
    colours = ("red", "green", "light blue")
    np.testing.assert_array_equal(spread(colours, ["light blue", "0"], 3), [2, 0, 2])
    with pytest.raises(InputError, match=r"'rad' is not .* 0 red, 1 green, 2 light blue"):
        spread(colours, ["rad"], 3)
    with pytest.raises(InputError, match=r"19 name19 \.\.\. 99 name99$"):
        spread([f"name{number}" for number in range(100)], ["100"], 3)


def test_other_settings_go_to_another_file(workdir):
    runs: list[dict[str, Any]] = [
        {},
        {"num": 1},
        {"classes": ["1"]},
        {"classes": ["1", "2"]},
        {"sampler": "euler"},
        {"steps": 2},
        {"ema": None},
        {"step": 10},
        {"guidance": 1.0},
        {"seed": 1},
    ]
    files = [sample_to_file(workdir, **run) for run in runs]
    assert len(set(files)) == len(runs)
    assert sample_to_file(workdir, classes=["0-2"], num=6, sampler="heun", steps=3, ema=0) == files[0]
    assert files[0].name == "step_0000020_guidance_2_seed_0.png"


def test_a_generator_says_what_it_is(generator):
    count = sum(leaf.size for leaf in jax.tree.leaves(generator.params))
    assert (
        repr(generator) == f"Generator(tiny, {count:,} parameters, step 0 without EMA, 4 x 4 x 1, 3 classes)"
    )


def test_the_grid_holds_every_image_in_its_place():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
    labels = [0, 1, 2, 0, 1, 2]
    picture = np.asarray(grid(images, labels, names=["a", "b", "c"]))
    times, gap = 6, 4
    side = 8 * times + gap
    caption = (picture.shape[0] - gap) // 2 - side
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        top, left = gap + caption + row * (side + caption), gap + column * side
        tile = picture[top : top + 8 * times, left : left + 8 * times]
        np.testing.assert_array_equal(tile[::times, ::times], image)
        assert (picture[top - caption : top, left : left + 8 * times] < 128).any()
    assert grid(images).size[1] < picture.shape[0]
    for count, classes, columns in ((100, 2, 10), (100, 3, 9), (80, 10, 10), (6, 3, 3), (12, 1, 4)):
        many = grid(np.zeros((count, 8, 8, 1), np.uint8), np.arange(count) % classes)
        assert many.size[0] == columns * side + gap


def test_captions_stand_on_one_line():
    images = np.full((2, 64, 64, 1), 255, np.uint8)
    captions = np.asarray(grid(images, [0, 1], names=["nnnn", "pnnn"], columns=2))[: -64 - 4]
    left, right = captions[:, : 64 + 4], captions[:, 64 + 4 :]
    top_of_n = [np.flatnonzero((half < 128).any(axis=1))[0] for half in (left, right)]
    assert top_of_n[0] == top_of_n[1]
    assert (left[-4:] >= 128).all()
    assert (right[-1:] >= 128).all()
    assert (right < 128).sum(axis=1)[-5:].any()


def test_the_grid_refuses_what_it_cannot_show():
    images, labels = np.zeros((6, 8, 8, 3), np.uint8), [0, 1, 2, 0, 1, 2]
    with pytest.raises(InputError, match="uint8"):
        grid(images.astype(np.float32))
    with pytest.raises(InputError, match="5 labels"):
        grid(images, labels[:5])


def test_a_file_that_cannot_be_written_is_explained(tmp_path):
    images, labels = np.zeros((1, 4, 4, 1), np.uint8), [0]
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "grid.png", tmp_path / "folder.png", tmp_path / "grid.bmp"):
        with pytest.raises(InputError, match=str(path.name)):
            write(path, images, labels)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path):
    path = tmp_path / "grid.png"
    path.write_bytes(b"older")
    with pytest.raises(InputError):
        write(path, np.zeros((1, 4, 4, 1)), [0])
    assert path.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_what_was_drawn_goes_elsewhere_where_it_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    images, disk = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1), tmp_path / "disk"
    disk.write_text("full")
    with pytest.raises(InputError, match=r"cannot be written: .*; it is ") as error:
        replace_file(disk / "a.npz", lambda file: np.savez(file, arr_0=images))
    (there,) = tmp_path.glob("pom_jax-*/a.npz")
    assert str(there) in str(error.value)
    with np.load(there) as found:
        np.testing.assert_array_equal(found["arr_0"], images)


def test_that_nothing_can_be_written_anywhere_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "nowhere")])
    (tmp_path / "disk").write_text("full")
    with pytest.raises(
        InputError, match=r"a\.npz cannot be written: .*; nor can .*: make room, and draw again"
    ):
        replace_file(tmp_path / "disk" / "a.npz", lambda file: np.savez(file, arr_0=np.zeros(1)))


def test_a_full_disk_while_sampling_is_said_and_keeps_the_older_file(workdir, tmp_path):
    out, elsewhere = tmp_path / "samples.npz", tmp_path / "elsewhere"
    out.write_bytes(b"older")
    elsewhere.mkdir()
    command = [sys.executable, "sample.py", f"--workdir={workdir}", "--num=100", f"--out={out}"]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; "$@"', "-", *command],  # 1 KiB a file
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(elsewhere)},
    )
    assert done.returncode == 2, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert f"{out} cannot be written: " in error
    assert "make room, and draw again" in error
    assert out.read_bytes() == b"older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "samples.npz"]
    assert not any(elsewhere.iterdir())


def test_the_batch_is_spread_over_all_devices_with_the_same_images(generator, tmp_path):
    program = """
import sys; sys.path.insert(0, "tests")
import jax, numpy as np
from test_sampling import tiny_generator
generator = tiny_generator()
leaves = jax.tree.leaves(generator.params)
assert all(len(leaf.sharding.device_set) == jax.device_count() == 4 for leaf in leaves)
np.save(sys.argv[1], generator.sample_array([0, 1, 2, 0, 1], seed=3))
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, str(tmp_path / "x.npy")]
    subprocess.run(command, cwd=ROOT, env=os.environ | flags | {"PYTHONPATH": str(ROOT)}, check=True)
    here = generator.sample_array([0, 1, 2, 0, 1], seed=3)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), here, atol=1e-5)


def test_the_library_itself_stays_light():
    """A layer in a notebook does not wait for Orbax, Pillow and the rest of sampling."""
    program = "import sys, pom_jax; print(sorted({'orbax', 'PIL', 'flax', 'rich'} & sys.modules.keys()))"
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert out.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="nothing"):
        _ = pom_jax.nothing
