"""Films from a model: what streams promise, and what sample.py makes of them."""

import contextlib
import dataclasses
import importlib.util
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import ExifTags, Image, ImageSequence

from configs import common
from pom_jax import models
from pom_jax.data.moving_digits import WORDS
from pom_jax.diffusion import SDE, guide
from pom_jax.errors import InputError
from pom_jax.models import Text
from pom_jax.sampling import SamplingProgress, VideoGenerator, film_output, load, load_video
from pom_jax.sampling.films import read_frames, write_films
from pom_jax.sampling.stream import StreamState, empty_states
from pom_jax.sampling.video_command import sample_video_to_file
from pom_jax.sampling.video_decode import load_video_decoder
from pom_jax.training import checkpoint
from pom_jax.training.config import keep_config, write_config
from pom_jax.vae import PRESETS, AutoencoderKL, save_autoencoder

ROOT = Path(__file__).parent.parent
TINY = {
    "family": "polymorpher",
    "frames": 3,
    "frame_height": 4,
    "frame_width": 4,
    "channels": 1,
    "text_length": 4,
    "text_width": 4,
    "vocabulary": 17,
    "patch_size": 2,
    "width": 8,
    "depth": 1,
    "expansion": 1,
    "ffn_expansion": 1,
    "frame_causal": True,
    "positions": "sincos_grid",
}
POM = {"reads": ("own", "last"), "phase_periods": (4.0,), "past_frames": 2}
ATTENTION = {"mixer": "attention", "num_heads": 2, "past_frames": 1}
ON_FOUR = """
import sys, jax, numpy as np
from tests.test_video_sampling import ATTENTION, POM, PROMPTS, tiny_generator
assert jax.device_count() == 4
films = {"pom": tiny_generator(**POM), "attention": tiny_generator(**ATTENTION)}
np.savez(sys.argv[1], **{name: each.sample_array(PROMPTS, 2) for name, each in films.items()})
"""
PROMPTS = ["a seven moving up", "a one moving left", "a three moving down"]


def tiny_config(**model: Any) -> ConfigDict:
    config = common.base()
    config.name, config.dtype = "tiny", "float32"
    with config.unlocked():
        config.model = ConfigDict(TINY | model)
        config.data.words = WORDS["digit"]
    config.data.dir = "nowhere"
    config.sampling.update({"sampler": "euler", "steps": 2, "guidance": 2.0, "num": 3})
    return config


def random_params(model: Any, seed: int = 0) -> Any:
    """Unlike fresh ones, these make every part of the network count."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
    return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(x.dtype), shapes)


def tiny_generator(still: bool = False, **model: Any) -> VideoGenerator:
    """With random parameters, or one that predicts no velocity at all."""
    config = tiny_config(**model)
    network: Any = models.build(config.model, config.dtype)
    params = random_params(network)
    if still:
        params["out"] = jax.tree.map(np.zeros_like, params["out"])
    return VideoGenerator(config, network, params, words=WORDS["digit"])


@pytest.fixture(scope="module")
def generator() -> VideoGenerator:
    return tiny_generator(**POM)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), tiny_config(**POM))


def make_run(folder: Path, config: ConfigDict, encoding: dict[str, Any] | None = None) -> Path:
    """What a finished run of train.py leaves, as far as sampling looks at it."""
    network = models.build(config.model, config.dtype)
    keep_config(folder, config, encoding=encoding)
    checkpoints = checkpoint.Checkpoints(folder, keep_last=1, keep_best=0)
    checkpoints.save(10, {"params": random_params(network, 1), "ema": [random_params(network)]})
    checkpoints.close()
    return folder


def joined(stream: Any) -> np.ndarray:
    return np.concatenate([piece.frames for piece in stream], axis=1)


def test_noise_depends_on_seed_film_and_frame_alone() -> None:
    noisy = tiny_generator(still=True)  # what comes out is the noise
    plain: dict[str, Any] = {"guidance": 1.0, "steps": 1, "seed": 5, "batch_size": 2}
    one = noisy.sample_array(PROMPTS, 4, **plain)
    assert len(np.unique(one)) > one.size / 2
    np.testing.assert_array_equal(one, noisy.sample_array(PROMPTS, 4, chunk=3, **plain))
    np.testing.assert_array_equal(one, noisy.sample_array(PROMPTS, 4, joint=True, **plain))
    np.testing.assert_array_equal(one[1:], noisy.sample_array(PROMPTS[1:], 4, first=1, **plain))
    assert np.abs(one - noisy.sample_array(PROMPTS, 4, **plain | {"seed": 6})).max() > 0.1


@pytest.mark.parametrize(("guidance", "later"), [(3.0, 1.5), (3.0, 1.0), (1.0, 1.5)])
def test_a_stream_is_the_plain_loop_over_frames_and_steps(
    generator: VideoGenerator, guidance: float, later: float
) -> None:
    """Euler's method with both halves written out, past at time 0; later frames by settings of their own.

    Where those are not guided there are no states without the text, and the network runs once a step.
    """
    model, params = generator.model, generator.params
    text = generator.texts(PROMPTS)
    nothing = text._replace(mask=0 * text.mask)
    call: Any = jax.jit(lambda *given: model.apply({"params": params}, *given))
    halves = [(text, model.init_states(3)), (nothing, model.init_states(3))]
    settings: dict[str, Any] = {"guidance": guidance, "later_guidance": later, "steps": 2, "later_steps": 3}
    for piece in generator.stream(text, 2, **settings, interval=(0.4, 1), seed=1):
        number, scale, steps = (piece.first, *((later, 3) if piece.first else (guidance, 2)))
        keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(1), i), number) for i in range(3)]
        x = jnp.stack([jax.random.normal(jax.random.split(key)[0], (1, 4, 4, 1)) for key in keys])
        for t in 1 - np.arange(steps) / steps:
            with_text, without = (call(x, jnp.full(3, t), say, state, number)[0] for say, state in halves)
            x -= 1 / steps * (without + (scale if t > 0.4 else 1) * (with_text - without))
        x = jnp.clip(x, -1, 1)
        halves = [(say, call(x, jnp.zeros(3), say, state, number)[1]) for say, state in halves]
        np.testing.assert_allclose(piece.frames, x, atol=2e-5)
        assert len(piece.state.halves) == (1 if later == 1 else 2)


def test_guidance_acts_in_the_interval_of_the_run(
    generator: VideoGenerator, workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(**POM)
    config.sampling.guidance_interval = (0.6, 1.0)
    late = VideoGenerator(config, generator.model, generator.params, words=generator.words)
    own = late.sample_array(PROMPTS, 2)
    np.testing.assert_array_equal(generator.sample_array(PROMPTS, 2, interval=[0.6, 1]), own)
    assert np.abs(generator.sample_array(PROMPTS, 2) - own).max() > 1e-3
    keep_config(shutil.copytree(workdir, tmp_path / "late"), config)
    file = sample_video_to_file(tmp_path / "late", prompts=PROMPTS[:1], frames=1)
    assert file.name == "step_0000010_a-seven-moving-up_1_frames_guidance_2_seed_0.gif"
    assert "guidance 2 at times 0.6 to 1, seed 0" in capsys.readouterr().out


def test_given_frames_stay_and_leave_the_same_states_in_chunks_of_any_length(
    generator: VideoGenerator,
) -> None:
    given = np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 4, 1)).astype(np.float32)
    states = []
    for chunk in (1, 3):
        pieces = []
        for piece in generator.stream(PROMPTS, 4, chunk=chunk, given=given):
            pieces.append(piece.frames)
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), given)
        states.append(piece.state.halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), *states)
    went_on = generator.sample_array(PROMPTS, 5, given=given)
    np.testing.assert_array_equal(went_on[:, :4], given)
    shuffled = generator.sample_array(PROMPTS, 5, given=given[:, ::-1])
    assert np.abs(went_on - shuffled)[:, 4].max() > 1e-3


def test_a_stream_that_was_put_on_disk_goes_on_bit_for_bit(generator: VideoGenerator, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sampler": SDE(), "guidance": 2.0, "seed": 3, "batch_size": 2}
    whole = joined(generator.stream(PROMPTS, 5, **settings))
    begun = generator.stream(PROMPTS, None, **settings)
    pieces = [next(begun) for _ in range(3)]
    file = tmp_path / "stream.npz"
    generator.save_state(file, pieces[-1].state)
    with pytest.raises(InputError, match="the state after frame 1 is gone"):
        _ = pieces[0].state
    state = generator.load_state(file)
    assert (state.frame, state.seed, state.captions) == (3, 3, tuple(PROMPTS))
    later = joined(generator.stream(frames=2, state=state, **settings | {"seed": None}))
    np.testing.assert_array_equal(np.concatenate([joined(pieces), later], axis=1), whole)

    wide = next(generator.stream(PROMPTS, 1, size=(4, 8), **settings)).state
    generator.save_state(file, wide)
    state = generator.load_state(file)
    assert joined(generator.stream(frames=1, state=state, **settings)).shape == (3, 1, 4, 8, 1)
    with pytest.raises(InputError, match="size=4x4: the films of this state have frames of 4x8"):
        generator.stream(frames=1, state=state, size=(4, 4), **settings)

    with pytest.raises(InputError, match="another model or checkpoint"):
        tiny_generator(still=True, **POM).load_state(file)
    with np.load(file) as content:
        about = str(content["about"]).replace("pom_jax stream 3", "pom_jax stream 2")
        np.savez(tmp_path / "older.npz", **dict(content) | {"about": np.array(about)})
    with pytest.raises(InputError, match=r"another version of pom_jax .*: draw these films anew"):
        generator.load_state(tmp_path / "older.npz")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match="damaged, or no state"):
        generator.load_state(file)
    with pytest.raises(InputError, match="no such state"):
        generator.load_state(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"ends in \.npz"):
        generator.save_state(tmp_path / "stream.pkl", state)


def test_frame_1000_takes_the_memory_of_frame_2_and_the_same_programs(generator: VideoGenerator) -> None:
    seen = {}
    for piece in itertools.islice(generator.stream(PROMPTS, None), 1000):
        if piece.first + 1 in (2, 1000):
            live = sum(array.nbytes for array in jax.live_arrays())
            needed = piece.state_bytes, piece.working_bytes
            seen[piece.first + 1] = *needed, live, len(generator.programs)
    assert seen[2] == seen[1000]
    assert min(seen[2]) > 0


def test_attention_carries_a_cache_that_doubles_and_reads_what_is_in_it_alone() -> None:
    attention = tiny_generator(mixer="attention", num_heads=2)
    given = np.random.default_rng(0).uniform(-1, 1, (1, 6, 4, 4, 1)).astype(np.float32)
    settings: dict[str, Any] = {"given": given, "guidance": 1.0, "steps": 1}
    carried = []
    for piece in attention.stream(PROMPTS[:1], 6, **settings):
        carried.append(piece.state_bytes)
    assert [after / carried[0] for after in carried] == [1, 2, 4, 4, 8, 8]
    assert len(attention.programs) == 4

    (states,) = piece.state.halves
    cut, whole = (jax.tree.map(lambda leaf, s=s: leaf.swapaxes(0, 1)[:, :, :s], states) for s in (24, 32))
    text, x = attention.texts(PROMPTS[:1]), np.ones((1, 2, 4, 4, 1), np.float32)
    model: Any = attention.model
    params, zero = {"params": attention.params}, np.zeros(1)
    read = jax.jit(lambda states: model.apply(params, x, zero, text, states, 6)[0])
    np.testing.assert_allclose(read(cut), read(whole), atol=1e-6)
    at_once = jax.jit(lambda x: model.apply(params, x, zero, text, model.init_states(1)))(given)[1]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), cut, at_once)


def test_four_devices_draw_the_films_of_one(generator: VideoGenerator, tmp_path: Path) -> None:
    """Three films in a batch of four; attention's caches are doubled on the way."""
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    subprocess.run(
        [sys.executable, "-c", ON_FOUR, tmp_path / "films.npz"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        check=True,
    )
    with np.load(tmp_path / "films.npz") as found:
        one = {"pom": generator, "attention": tiny_generator(**ATTENTION)}
        for name, each in one.items():
            np.testing.assert_allclose(found[name], each.sample_array(PROMPTS, 2), atol=1e-5)


def test_guidance_takes_any_condition() -> None:
    rng = np.random.default_rng(0)
    x, words, mask = (jnp.asarray(rng.normal(size=(2, 3)), jnp.float32) for _ in range(3))
    t = jnp.ones(2)

    def network(x: jax.Array, t: jax.Array, given: Any) -> jax.Array:
        text, number = given
        return x * t[:, None] + jnp.sin(text.tokens) * text.mask + number[:, None]

    given = (Text(words, mask), jnp.arange(2.0))
    null = (Text(words, jnp.zeros_like(mask)), jnp.zeros(2))
    conditional, without = network(x, t, given), network(x, t, null)
    np.testing.assert_allclose(
        guide(network, given, null, 3.0)(x, t), without + 3 * (conditional - without), 1e-5
    )
    np.testing.assert_allclose(guide(network, given, null, jnp.float32(1))(x, t), conditional, rtol=1e-5)
    np.testing.assert_array_equal(guide(network, given, null)(x, t), conditional)
    with pytest.raises(InputError, match="null like the condition"):
        guide(network, given, 10, 2.0)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ([], {}, "at least one text"),
        ("a seven moving up", {}, "list"),
        ([" "], {}, "empty"),
        (["a seven moving pu"], {}, "Did you mean 'up'"),
        (["a seven moving up up"], {}, "5 words, this model reads at most 4"),
        ([3], {}, r"list of at least one text; got \[3\]"),
        (3, {}, "list of at least one text"),
        (
            Text(jnp.full((1, 4), 17), jnp.ones((1, 4))),
            {},
            "numbers from 17 to 17, and .* table of 17 words: 0 to",
        ),
        (Text(jnp.full((1, 4), -1), jnp.ones((1, 4))), {}, "numbers from -1 to -1"),
        (PROMPTS, {"frames": 0}, "frames=0"),
        (PROMPTS, {"frames": "2"}, "frames='2': it must be a whole number"),
        (PROMPTS, {"chunk": -1}, "chunk=-1"),
        (PROMPTS, {"size": (5, 4)}, "multiples of 2"),
        (PROMPTS, {"size": 8}, r"size=8 must be \(height, width\)"),
        (PROMPTS, {"given": np.zeros((3, 1, 4, 4, 1), np.uint8)}, r"got uint8: generator\.first_frames"),
        (PROMPTS, {"given": [[0]]}, "array of floats, in the space of the model; got list"),
        (PROMPTS, {"given": np.zeros((3, 1, 8, 8, 3))}, r"given frames must be \[3, T0, 8, 8, 1\]"),
        (PROMPTS, {"given": np.full((3, 1, 4, 4, 1), np.nan)}, "not finite"),
        (PROMPTS, {"frames": 2, "given": np.zeros((3, 3, 4, 4, 1))}, "include its 3 given"),
        (PROMPTS, {"guidance": -1.0}, "guidance"),
        (PROMPTS, {"later_guidance": -1.0}, "^later_guidance must be finite"),
        (PROMPTS, {"steps": 0}, "^steps must be"),
        (PROMPTS, {"later_steps": -1}, "^later_steps must be .* got -1"),
        (PROMPTS, {"sampler": "hein"}, "Did you mean 'heun'"),
        (PROMPTS, {"batch_size": 0}, "batch_size"),
        (PROMPTS, {"seed": -1}, "seed"),
        (None, {}, "which films"),
    ],
)
def test_mistakes_are_explained_before_anything_compiles(
    generator: VideoGenerator, text: Any, settings: Any, message: str
) -> None:
    class Never:
        def compiling(self, what: str) -> None:
            raise AssertionError("compiled")

    asked: dict[str, Any] = {"frames": 3, "progress": Never(), **settings}
    with pytest.raises(InputError, match=message):
        generator.stream(text, **asked)


def test_what_a_model_cannot_is_explained() -> None:
    whole = tiny_generator(frame_causal=False)
    with pytest.raises(InputError, match="frame_causal"):
        whole.stream(PROMPTS, 3)
    with pytest.raises(InputError, match="no given frames"):
        whole.sample_array(PROMPTS, 3, given=np.zeros((3, 1, 4, 4, 1)))
    embedded = tiny_generator(vocabulary=0)
    with pytest.raises(InputError, match="--text_encoder=DIR"):
        embedded.texts(PROMPTS)
    with pytest.raises(InputError, match=r"text\.tokens must be \[B, M, 4\]"):
        embedded.stream(Text(jnp.zeros((1, 3, 5)), jnp.ones((1, 3))), 3)
    with pytest.raises(InputError, match="--autoencoder=DIR"):
        tiny_generator(channels=16).sample(PROMPTS)
    patched = tiny_generator(**POM, frame_patch=2, frames=6)
    for frames, chunk in ((3, None), (4, 3)):
        with pytest.raises(InputError, match=r"=3: it must be .* multiple of 2, the frames of a patch"):
            patched.stream(PROMPTS, frames, chunk=chunk)
    with pytest.raises(InputError, match="T0 a multiple of 2; got"):
        patched.stream(PROMPTS, 4, given=np.zeros((3, 1, 4, 4, 1), np.float32))
    with pytest.raises(InputError, match="frames='4'"):
        patched.sample(PROMPTS, cast(Any, "4"))
    assert patched.sample(PROMPTS, 4).shape == (3, 4, 4, 4, 1)


def test_from_a_workdir_to_files_stopped_by_a_signal_and_gone_on(
    workdir: Path,
    tmp_path: Path,
    generator: VideoGenerator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = SamplingProgress.drawn

    def interrupted(progress: SamplingProgress, images: int, total: int) -> None:
        drawn(progress, images, total)
        if images == 6:  # in the middle of the second frame of three films
            signal.raise_signal(signal.SIGINT)

    state, begun, later = (str(tmp_path / name) for name in ("state.npz", "begun.npz", "later.npz"))
    with monkeypatch.context() as patched:
        patched.setattr(SamplingProgress, "drawn", interrupted)
        prompts = ["; ".join(PROMPTS) + ";"]
        with pytest.raises(SystemExit) as ended:
            sample_video_to_file(workdir, out=begun, prompts=prompts, frames=50, save_state=state)
    assert ended.value.code == 130
    assert "finishing this frame" in (said := capsys.readouterr().out)
    assert "stopped after 2 of 50 frames" in said
    assert "fall apart; draw with --joint" in said, "its frames had one time"
    assert not Path(begun).exists(), "what is not whole has another name"
    begun = str(tmp_path / "begun_first_2.npz")
    sample_video_to_file(workdir, out=later, frames=1, state=state)
    assert "3 frames in" in capsys.readouterr().out
    whole = generator.sample(PROMPTS, 3)
    with np.load(begun) as first, np.load(later) as second:
        films = np.concatenate([first["arr_0"], second["arr_0"]], axis=1)
        assert first["captions"].tolist() == second["captions"].tolist() == PROMPTS
    np.testing.assert_array_equal(films, whole)
    gif = sample_video_to_file(workdir, prompts=PROMPTS[:1], frames=3, from_file=begun, seed=1)
    assert gif.parent == workdir / "samples"
    assert re.fullmatch(
        r"step_0000010_a-seven-moving-up_3_frames_3_films_continued_\w{8}_guidance_2_seed_1.gif", gif.name
    )
    assert len(list(ImageSequence.Iterator(Image.open(gif)))) == 3
    more = sample_video_to_file(workdir, prompts=PROMPTS[:1], frames=1, num=2, size="4x8")
    assert "trained on frames of 4x4; what it makes of others is untried" in capsys.readouterr().out
    assert more.name == "step_0000010_a-seven-moving-up_1_frames_2_films_of_4x8_guidance_2_seed_0.gif"
    assert Image.open(gif.with_name(f"{gif.stem}_strip.png")).size[1] > 3 * 48


def test_films_at_once_are_advised_against_where_frames_read_finished_ones(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(workdir, tmp_path / "run")
    config = tiny_config(**POM)
    with config.unlocked():
        config.diffusion.frame_times = "teacher_forcing"
    write_config(run, config)
    sample_video_to_file(run, prompts=PROMPTS[:1], frames=2, joint=True)
    assert "trained with diffusion.frame_times='teacher_forcing': frames drawn all at once" in (
        said := capsys.readouterr().out
    )
    assert said.index("leave out --joint") < said.index("written:")
    sample_video_to_file(run, prompts=PROMPTS[:1], frames=1, joint=True)
    assert "note:" not in (said := capsys.readouterr().out)
    assert "tiny: 1 picture, EMA" in said
    assert "1 frame in" in said
    # Of a run with one time for all frames, what reads finished frames is advised against, whatever it is.
    sample_video_to_file(workdir, prompts=PROMPTS[:1], frames=3, chunk=3)
    assert "note:" not in capsys.readouterr().out
    state = str(tmp_path / "state.npz")
    name = sample_video_to_file(
        workdir, prompts=PROMPTS[:1], frames=2, chunk=1, save_state=state, guidance=4.0, later_guidance=1.0
    ).name
    assert "_2_frames_chunks_of_1_guidance_4_then_1_seed_0.gif" in name
    assert "2 steps, guidance 4 and later 1, seed 0" in capsys.readouterr().out
    name = sample_video_to_file(workdir, prompts=PROMPTS[:1], frames=2, later_steps=1).name
    assert "_2_frames_guidance_2_seed_0_2_then_1_steps" in name
    assert "euler, 2 and later 1 steps, guidance 2, seed 0" in capsys.readouterr().out
    name = sample_video_to_file(workdir, frames=1, state=state, later_guidance=1.0, later_steps=1).name
    assert re.search(r"_from_2_\w{8}_guidance_1_seed_0_1_steps", name)
    assert "euler, 1 steps, guidance 1, seed 0" in (said := capsys.readouterr().out)
    assert "tiny: 1 film of 1 frame, streamed, EMA" in said
    assert "fall apart\n" in said, "--joint is no way out"


def test_later_frames_that_were_not_guided_go_on_without_guidance(generator: VideoGenerator) -> None:
    halves = (empty_states(generator.model, 1, (4, 4)),)
    text = generator.texts(PROMPTS[:1])
    state = StreamState(2, (4, 4), 0, np.zeros(1, np.uint32), text, (), halves)
    with pytest.raises(InputError, match=r"guidance 1\.5 of later frames: .*--later_guidance=1 "):
        next(generator.stream(None, 1, state=state, guidance=1.0, later_guidance=1.5))


def test_a_signal_while_the_film_is_written_comes_too_late(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(path: Path, *given: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        write_films(path, *given)

    monkeypatch.setattr(film_output, "write_films", told)
    out = tmp_path / "films.npz"
    sample_video_to_file(workdir, prompts=PROMPTS[:1], frames=2, out=str(out))
    with np.load(out) as found:
        assert found["arr_0"].shape[:2] == (1, 2)


def test_a_state_outlives_fields_that_are_added_to_models(generator: VideoGenerator, tmp_path: Path) -> None:
    state = next(generator.stream(PROMPTS, 1, steps=1)).state
    generator.save_state(tmp_path / "state.npz", state)
    later = tiny_generator(**POM, pooled_text=False, n_timesteps=1000)
    assert later.load_state(tmp_path / "state.npz").frame == 1
    with pytest.raises(InputError, match="of another model"):
        tiny_generator(**POM, n_timesteps=100).load_state(tmp_path / "state.npz")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": ()}, "which films"),
        ({"prompts": ("a seven", "")}, "empty"),
        ({"num": 0}, "at least one film"),
        ({"fps": 0}, "--fps=0"),
        ({"out": "film.avi"}, "ending"),
        ({"joint": True, "save_state": "s.npz"}, "leave out --joint"),
        ({"out": "films.npz", "save_state": "films.npz"}, "the films are written there, too"),
        ({"out": "films.npz", "save_state": "films_first_2.npz"}, "the films are written there, too"),
        ({"from_file": "none.png"}, "no such file"),
        ({"state": "none.npz"}, "no such state"),
        ({"size": "16"}, "HEIGHTxWIDTH"),
        ({"ema": 3}, "--ema=3"),
        ({"text_encoder": "t5"}, "knows 16 words by itself"),
        ({"autoencoder": "vae"}, "holds no autoencoder"),
        ({"prompts": (";",)}, "empty"),
        ({"from_file": "wide.png"}, r"--from=.*wide\.png has frames of 4x8, the films have 4x4.*--size=4x8"),
        (
            {"from_file": "odd.png"},
            r"has frames of 7x9, the films have 4x4: resize it; .* their \.npz or --save",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_explained(
    workdir: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    flags: dict[str, Any] = {"prompts": PROMPTS, **given}
    for name in {"out", "save_state", "from_file", "state"} & flags.keys():
        flags[name] = str(tmp_path / flags[name])
    flags.setdefault("out", str(tmp_path / "film.gif"))
    Image.new("L", (8, 4)).save(tmp_path / "wide.png")
    Image.new("L", (9, 7)).save(tmp_path / "odd.png")
    with pytest.raises(InputError, match=message):
        sample_video_to_file(workdir, **flags)
    assert {file.name for file in tmp_path.iterdir()} == {"wide.png", "odd.png"}


def test_an_autoencoder_goes_with_its_latents_of_three_channels_and_with_no_pixels(tmp_path: Path) -> None:
    network = AutoencoderKL(dataclasses.replace(PRESETS["tiny"], latent_channels=3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    save_autoencoder(tmp_path, network, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes["params"]))
    with pytest.raises(InputError, match="draws pixels by itself; leave it out"):
        load_video_decoder(tmp_path, tiny_config())
    three = tiny_generator(channels=3)
    assert three.draws_pixels
    three.decoder = load_video_decoder(tmp_path, three.config)
    assert (three.draws_pixels, three.makes_pixels) == (False, True)
    run = make_run(tmp_path / "run", tiny_config(channels=3), {"autoencoder": "a network of three channels"})
    assert not load_video(run).draws_pixels, "the run keeps what its data was made with"
    assert load_video(make_run(tmp_path / "pixels", tiny_config(channels=3), {})).draws_pixels


def test_flags_and_workdirs_of_the_other_kind_are_explained(workdir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "sample.py", f"--workdir={workdir}", "--classes=0,1"]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "draws films, with --prompt; --classes is of images" in ended.stderr
    command[-1:] = ["--prompt=a one moving left", "--nostream", f"--save_state={tmp_path / 'state.npz'}"]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert (ended.returncode, "draws all frames at once" in ended.stderr) == (2, True), "as with --joint"
    with pytest.raises(InputError, match="load_video"):
        load(workdir)
    images = common.base()
    keep_config(tmp_path / "images", images)
    with pytest.raises(InputError, match=r"pom_jax\.load"):
        load_video(tmp_path / "images")


def test_first_frames_come_from_pictures_and_arrays(tmp_path: Path) -> None:
    films = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 4, 1), dtype=np.uint8)
    write_films(tmp_path / "films.npz", films)
    np.testing.assert_array_equal(read_frames(tmp_path / "films.npz", (4, 4), pixels=1), films)
    Image.fromarray(films[0, 0, ..., 0]).save(tmp_path / "one.png")
    found = read_frames(tmp_path / "one.png", (4, 4), pixels=1)
    np.testing.assert_array_equal(found, films[:1, :1])
    for name in ("one.PNG", "one.jpg", "one.JPEG"):
        Image.new("L", (4, 4), 77).save(tmp_path / name)
        assert (read_frames(tmp_path / name, (4, 4), pixels=1) == 77).all()
    lying = Image.fromarray(np.repeat([[250], [0]], 8, axis=0).repeat(16, axis=1).astype(np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned to the right
    lying.save(tmp_path / "two.jpg", "MPO", exif=exif, save_all=True, append_images=[lying])
    found = read_frames(tmp_path / "two.jpg", (16, 16), pixels=1)
    assert found.shape == (1, 1, 16, 16, 1), "a telephone's second picture is no frame"
    assert found[0, 0, :, 4, 0].max() < 50 < 200 < found[0, 0, :, 12, 0].min(), "it stands upright"
    write_films(tmp_path / "whole.gif", films)
    whole = (tmp_path / "whole.gif").read_bytes()
    for left in range(40, len(whole), len(whole) // 7):  # what Pillow raises depends on where it ends
        (tmp_path / "cut.gif").write_bytes(whole[:left])
        with contextlib.suppress(InputError):
            read_frames(tmp_path / "cut.gif", (4, 4), pixels=1)
    (tmp_path / "bad.gif").write_bytes(b"GIF89a")
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits a channel"):
        read_frames(tmp_path / "deep.png", (4, 4), pixels=1)
    with pytest.raises(InputError, match="cannot be read"):
        read_frames(tmp_path / "bad.gif", (4, 4), pixels=1)
    with pytest.raises(InputError, match=r"come from \.npz"):
        read_frames(tmp_path / "one.png", (4, 4), latents=16)
    with pytest.raises(InputError, match="needs float32 latents"):
        read_frames(tmp_path / "films.npz", (4, 4), latents=16)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_clip_is_continued(channels: int, workdir: Path, tmp_path: Path) -> None:
    """All its frames, if they are of the films' size; where there is no PyAV, what is missing is said."""
    path = tmp_path / "clip.mp4"
    film = np.linspace(0, 250, 4 * 16 * 16, dtype=np.uint8).reshape(4, 16, 16, 1).repeat(3, axis=3)
    if importlib.util.find_spec("av") is None:
        path.write_bytes(b"a clip")
        with pytest.raises(InputError, match=r"needs the package av .*pom_jax\[video\]"):
            read_frames(path, (16, 16), pixels=channels)
        return
    av = importlib.import_module("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8, width=16, height=16)
        stream.pix_fmt = "yuv420p"
        for frame in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    found = read_frames(path, (16, 16), pixels=channels)
    assert (found.dtype, found.shape) == (np.uint8, (1, 4, 16, 16, channels))
    assert np.abs(found[0].astype(int) - film[..., :channels]).max() < 16
    with pytest.raises(InputError, match="have 16x16 pixels, not 4x4"):
        sample_video_to_file(workdir, prompts=PROMPTS[:1], from_file=str(path))
    if channels == 1:
        out = str(tmp_path / "film.npz")
        sample_video_to_file(
            workdir, prompts=PROMPTS[:1], frames=5, size="16x16", from_file=str(path), out=out
        )
        with np.load(out) as content:
            assert content["arr_0"].shape == (1, 5, 16, 16, 1)
            np.testing.assert_array_equal(content["arr_0"][:, :4], found)


def test_films_are_written_in_every_format(tmp_path: Path) -> None:
    films = np.random.default_rng(0).integers(0, 255, (3, 5, 7, 9, 1), dtype=np.uint8)
    for name in ("films.gif", "films.webp", "films.png"):
        write_films(tmp_path / name, films, PROMPTS, fps=10)
        assert len(list(ImageSequence.Iterator(Image.open(tmp_path / name)))) == (
            1 if name[-3:] == "png" else 5
        )
    if importlib.util.find_spec("av") is None:
        with pytest.raises(InputError, match="pip install av"):
            write_films(tmp_path / "films.mp4", films, PROMPTS)
        return
    write_films(tmp_path / "films.mp4", films, PROMPTS)
    with importlib.import_module("av").open(str(tmp_path / "films.mp4")) as container:
        frames = list(container.decode(video=0))
    assert (len(frames), frames[0].format.name) == (5, "yuv420p")
