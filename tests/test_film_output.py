"""What is left of films when something goes wrong or is interrupted, and what sample.py says of them."""

import contextlib
import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from configs import common
from pom_jax.errors import InputError
from pom_jax.sampling.film_output import write_drawn
from pom_jax.sampling.video_command import _mark, sample_video_to_file
from pom_jax.training.config import keep_config, write_config
from tests.test_video_sampling import (
    ATTENTION,
    POM,
    PROMPTS,
    ROOT,
    joined,
    tiny_config,
    tiny_generator,
    workdir,  # noqa: F401
)


class Stopped(Exception):
    """Of a progress that stops films."""


class Told:
    """Keeps what it is told, and stops films at a number of drawn frames."""

    def __init__(self, stop: int = -1):
        self.names: list[str] = []
        self.stop = stop

    def compiling(self, what: str) -> None:
        self.names.append(what)

    def compiled(self, seconds: float) -> None:
        del seconds

    def drawn(self, images: int, total: int) -> None:
        del total
        if images == self.stop:
            raise Stopped


TOO_MUCH = 1e39  # guidance beyond float32, so that frames are not finite


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("model", [POM, ATTENTION])
def test_films_that_stop_within_a_frame_go_on_from_the_one_before(model: dict[str, Any]) -> None:
    """One of three batches has drawn its third frame; or that frame is not finite, and others are drawn."""
    generator = tiny_generator(**model)
    alone: dict[str, Any] = {"batch_size": 1}
    whole = generator.sample_array(PROMPTS, 4, **alone)
    stopped = generator.stream(PROMPTS, 4, progress=Told(stop=3 * 2 + 1), **alone)
    pieces = [next(stopped), next(stopped)]
    with pytest.raises(Stopped):
        next(stopped)
    state = pieces[-1].state
    assert state.frame == 2
    later = joined(generator.stream(None, 2, state=state, **alone))
    np.testing.assert_array_equal(np.concatenate([joined(pieces), later], axis=1), whole)
    with pytest.raises(InputError, match="the state after frame 1 is gone"):
        _ = pieces[0].state

    broken = generator.stream(None, 2, state=state, later_guidance=TOO_MUCH, **alone)
    with pytest.raises(InputError, match="frames 2 to 2 are not finite"):
        next(broken)
    begun = generator.stream(PROMPTS, 4, later_guidance=TOO_MUCH, **alone)
    first = next(begun)
    with pytest.raises(InputError, match="frames 1 to 1 are not finite"):
        next(begun)
    later = joined(generator.stream(None, 3, state=first.state, **alone))
    np.testing.assert_array_equal(later, whole[:, 1:])


def test_states_are_computed_for_frames_that_something_follows() -> None:
    generator, told = tiny_generator(**POM), Told()
    (picture,) = generator.stream(PROMPTS, 1, progress=told)
    assert told.names == ["sampler"]
    assert picture.state_bytes > 0
    assert told.names == ["sampler", "reader of finished frames"]
    list(generator.stream(PROMPTS, 2, steps=3, later_steps=1, progress=told))
    assert told.names[2:] == ["sampler of first frames", "sampler of later frames"]


@pytest.mark.parametrize(
    ("names", "frames", "size", "limit", "lost"),
    [
        (["film.npz"], 2, (16, 16), 6_000, "state.npz"),
        (["film.gif", "film_strip.png"], 30, (4, 4), 10_000, "film.gif"),
    ],
)
def test_what_cannot_be_written_costs_nothing_else(
    names: list[str], frames: int, size: tuple[int, int], limit: int, lost: str, tmp_path: Path
) -> None:
    generator, state = tiny_generator(**POM), tmp_path / "state.npz"
    pieces = []
    for piece in generator.stream(PROMPTS[:1], frames, size=size):
        pieces.append(piece)
    generator.save_state(state, piece.state)  # so that nothing compiles below
    state.unlink()
    files = [tmp_path / name for name in names]
    with files_of_at_most(limit):
        (failure,) = write_drawn(generator, pieces, files, PROMPTS[:1], frames, str(state), 8)
    assert re.search(rf"{lost} cannot be written: .*too large", str(failure))
    assert {file.name for file in tmp_path.iterdir()} == {*names, "state.npz"} - {lost}


def test_latents_that_cannot_be_decoded_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny_generator(**POM, channels=4)

    def decoder(x: np.ndarray) -> np.ndarray:
        raise RuntimeError("no memory")

    plain.decoder = decoder
    pieces = []
    for piece in plain.stream(PROMPTS[:1], 2):
        pieces.append(piece)
    files = [tmp_path / "film.gif", tmp_path / "film_strip.png"]
    (failure,) = write_drawn(plain, pieces, files, PROMPTS[:1], 2, str(tmp_path / "state.npz"), 8)
    assert str(failure) == "no memory"
    assert {file.name for file in tmp_path.iterdir()} == {"film_latents.npz", "state.npz"}
    assert f"written: {tmp_path / 'film_latents.npz'}" in capsys.readouterr().out
    with np.load(tmp_path / "film_latents.npz") as found:
        np.testing.assert_array_equal(found["arr_0"], joined(pieces))


def test_a_state_that_was_lost_within_its_computation_is_told() -> None:
    """A program that adds states takes the memory of the ones before; an interrupt may come behind it."""
    (piece,) = tiny_generator(**POM).stream(PROMPTS, 1)
    for leaf in jax.tree.leaves(piece._drawing.films.batches[0].halves):
        leaf.delete()
    with pytest.raises(InputError, match=r"the state after frame 1 is gone, for adding it was interrupted"):
        _ = piece.state


def test_films_do_not_take_the_place_of_the_state_that_they_go_on_from(
    workdir: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    state = tmp_path / "state.npz"
    sample_video_to_file(
        workdir, prompts=PROMPTS[:1], frames=1, out=str(tmp_path / "a.npz"), save_state=str(state)
    )
    before = state.read_bytes()
    with pytest.raises(InputError, match=r"--state=.*state\.npz: the films are written there, too"):
        sample_video_to_file(workdir, state=str(state), frames=1, out=str(state))
    assert state.read_bytes() == before
    sample_video_to_file(
        workdir, state=str(state), save_state=str(state), frames=1, out=str(tmp_path / "b.npz")
    )
    assert state.read_bytes() != before


def test_a_name_tells_the_state_from_another_beside_the_same_given_frames() -> None:
    generator, given = tiny_generator(**POM), np.zeros((1, 1, 4, 4, 1), np.float32)
    states = [next(generator.stream(PROMPTS[:1], 1, seed=seed)).state for seed in (0, 1)]
    assert len({_mark(first, state) for first in (None, given) for state in (None, *states)}) == 6


def test_what_goes_wrong_keeps_the_frames_before_it_and_their_state(
    workdir: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = str(tmp_path / "state.npz")
    settings: dict[str, Any] = {"prompts": PROMPTS[:1], "frames": 3}
    with pytest.raises(InputError, match="frames 1 to 1 are not finite"):
        sample_video_to_file(workdir, out=str(tmp_path / "shown.gif"), later_guidance=TOO_MUCH, **settings)
    assert {file.name for file in tmp_path.iterdir()} == {"shown_first_1.gif", "shown_first_1_strip.png"}
    assert "stopped after 1 of 3 frames\n" in capsys.readouterr().out
    with pytest.raises(InputError, match="frames 1 to 1 are not finite"):
        sample_video_to_file(
            workdir, out=str(tmp_path / "film.npz"), save_state=state, later_guidance=TOO_MUCH, **settings
        )
    later, whole = (str(tmp_path / name) for name in ("later.npz", "whole.npz"))
    sample_video_to_file(workdir, frames=2, state=state, out=later)
    sample_video_to_file(workdir, out=whole, **settings)
    parts = (np.load(file)["arr_0"] for file in (tmp_path / "film_first_1.npz", later))
    np.testing.assert_array_equal(np.concatenate([*parts], axis=1), np.load(whole)["arr_0"])


def test_settings_of_frames_that_are_not_drawn_are_refused(
    workdir: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(workdir, tmp_path / "run")
    config = tiny_config(**POM)
    with config.unlocked():
        config.sampling.update({"later_guidance": 1.0, "later_steps": 1})
    write_config(run, config)
    state, out = str(tmp_path / "state.npz"), str(tmp_path / "film.npz")
    films: dict[str, Any] = {"prompts": PROMPTS[:1], "frames": 1, "out": out}
    sample_video_to_file(run, save_state=state, **films)
    assert "2 steps, guidance 2, seed 0" in capsys.readouterr().out, "there is no later frame"
    Image.new("L", (4, 4)).save(tmp_path / "first.png")
    pasts = {"state": state}, {"from_file": str(tmp_path / "first.png"), "prompts": PROMPTS[:1]}
    for past in pasts:
        goes_on: dict[str, Any] = {**past, "frames": 2, "out": out}
        with pytest.raises(
            InputError, match=r"--guidance=7 is of first .* with --later_guidance=1: set that"
        ):
            sample_video_to_file(run, guidance=7.0, **goes_on)
        with pytest.raises(InputError, match=r"--steps=9 is of first .* with --later_steps=2: set that"):
            sample_video_to_file(run, steps=9, later_steps=2, **goes_on)
        sample_video_to_file(run, guidance=1.0, later_steps=2, **goes_on)
        assert "2 steps, guidance 1, seed 0" in capsys.readouterr().out
        # Where the run has no later values these are of all frames.
        if "state" not in past:
            sample_video_to_file(workdir, guidance=7.0, **goes_on)
            assert "2 steps, guidance 7, seed 0" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--later_guidance=3 is of frames behind .* at once: leave it out"):
        sample_video_to_file(run, joint=True, later_guidance=3.0, **films)
    with pytest.raises(InputError, match=r"--later_steps=7 is of frames behind"):
        sample_video_to_file(run, joint=True, later_steps=7, **films)
    for flag, value in (("later_guidance", 3.0), ("later_steps", 7)):
        later: dict[str, Any] = {flag: value}
        with pytest.raises(InputError, match=f"--{flag}=. is of frames behind"):
            sample_video_to_file(run, **films, **later)
    kept: dict[str, Any] = {"later_guidance": 3.0, "save_state": str(tmp_path / "kept.npz")}
    name = sample_video_to_file(run, prompts=PROMPTS[:1], frames=1, **kept).name
    assert name == "step_0000010_a-seven-moving-up_1_frames_guidance_2_seed_0.gif"
    name = sample_video_to_file(run, prompts=PROMPTS[:1], frames=2, steps=3).name
    assert "_guidance_2_then_1_seed_0_3_then_1_steps" in name


@pytest.mark.parametrize("ending", [".gif", ".webp", ".mp4", ".png", None])
def test_beside_an_animation_stands_a_strip(
    workdir: Path,  # noqa: F811
    tmp_path: Path,
    ending: str | None,
) -> None:
    """And where nothing is asked for an .mp4, where there is PyAV."""
    run = shutil.copytree(workdir, tmp_path / "run")
    clips = importlib.util.find_spec("av") is not None
    if ending == ".mp4" and not clips:
        pytest.skip("an .mp4 is written with PyAV")
    out = None if ending is None else tmp_path / "out" / f"film{ending}"
    film = sample_video_to_file(
        run, prompts=PROMPTS[:1], frames=2, seed=9, out=None if out is None else str(out)
    )
    assert film.suffix == (ending or ".gif")
    written = {film.name}
    if ending != ".png":
        written.add(f"{film.stem}_strip.png")
        assert Image.open(film.with_name(f"{film.stem}_strip.png")).width > 2 * 48
    if ending is None and clips:
        written.add(f"{film.stem}.mp4")
    assert {file.name for file in film.parent.iterdir()} == written


def test_a_prompt_for_a_model_of_images_is_explained(tmp_path: Path) -> None:
    keep_config(tmp_path, common.base())
    ended = subprocess.run(
        [sys.executable, "sample.py", f"--workdir={tmp_path}", "--prompt=a seven moving up", "--frames=2"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "draws images, with --classes; --prompt, --frames are of films" in ended.stderr
