"""Films of a model of latents: prompts by a published text encoder, pixels by a video autoencoder."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

import prepare as prepare_command
from configs import common
from pom_jax.data import Records, read_manifest, torch_models
from pom_jax.data.clips import read_clip
from pom_jax.data.video_autoencoder import VideoAutoencoder
from pom_jax.errors import InputError
from pom_jax.sampling import VideoGenerator, load_video
from pom_jax.sampling.video_command import sample_video_to_file
from pom_jax.sampling.video_decode import ChunkDecoder, load_text_encoder, load_video_decoder
from pom_jax.training import loop
from tests.interop.test_video_data import autoencoder, clips, flags, text_encoder, write_clip  # noqa: F401
from tests.test_video_sampling import tiny_generator

OF_LATENTS = {"vocabulary": 0, "text_length": 8, "text_width": 16, "channels": 4, "patch_size": 1}
OF_LATENTS |= {"frames": 4, "frame_height": 2, "frame_width": 3, "frame_patch": 1, "width": 16, "depth": 1}


@pytest.fixture(scope="module")
def made(clips: Path, autoencoder: Path, text_encoder: Path, tmp_path_factory) -> Path:  # noqa: F811
    """Latents as the authors of PoM take them: not scaled."""
    out = tmp_path_factory.mktemp("made") / "set"
    assert prepare_command.main(flags(clips, autoencoder, text_encoder, out, "--scale=1")) == 0
    return out


@pytest.fixture(scope="module")
def run(made: Path, tmp_path_factory) -> Path:
    """Trained for one step."""
    config = common.video("Polymorpher-S/2", "streaming")
    config.model.update(OF_LATENTS)
    config.dtype = "float32"
    config.data.update({"dir": str(made), "batch_size": 2})
    config.train.update({"steps": 1, "eval_every": 0, "sample_every": 0, "checkpoint_every": 1})
    config.optimizer.update({"warmup_steps": 0, "schedule": "constant"})
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert loop.train(config, folder, lambda *_: None) == 0
    return folder


def test_a_run_decodes_its_latents_alike_once_its_data_is_gone(
    run: Path,
    made: Path,
    autoencoder: Path,  # noqa: F811
    text_encoder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """What its data was made with is kept; of an older run the folder of its data tells it, if it is here."""
    latents = Records(made, "train").gather(np.arange(2))["mean"][:, 0].astype(np.float32)
    truth = VideoAutoencoder(autoencoder, 16, (16, 24)).decode(latents)
    kept = json.loads((run / "config.json").read_text())
    manifest = read_manifest(made)
    assert kept["data"]["encoding"] == {
        "autoencoder": manifest.autoencoder,
        "text_encoder": manifest.text_encoder,
        "scale": 1.0,
        "shift": 0.0,
        "chunk_frames": 8,
    }

    def decoded(**data: object) -> tuple[np.ndarray, str]:
        """By a run that keeps this of its data, and what is said."""
        folder, said = shutil.copytree(run, tmp_path / f"run{len(list(tmp_path.iterdir()))}"), []
        content = {**kept, "data": {**kept["data"], **data}}
        content["data"] = {name: value for name, value in content["data"].items() if value is not None}
        (folder / "config.json").write_text(json.dumps(content))
        generator = load_video(folder, autoencoder=autoencoder, text_encoder=text_encoder, say=said.append)
        return generator.pixels(latents), "\n".join(said)

    pixels, said = decoded(dir="nowhere")
    np.testing.assert_array_equal(pixels, truth)
    assert said == ""
    pixels, said = decoded(encoding=None)
    np.testing.assert_array_equal(pixels, truth)
    assert said == ""
    pixels, said = decoded(encoding=None, digest="0123456789abcdef")
    assert np.abs(pixels.astype(int) - truth).max() > 2, "taken for scaled ones"
    assert f"(checksum {manifest.digest}) is not what it has learned from (checksum 0123456789abcdef)" in said
    assert "own scale 1.15258 (plus 0), in chunks of 8 frames" in said
    _, said = decoded(encoding=None, dir="nowhere")
    assert "its data (data.dir=nowhere) is not here" in said


def test_other_encoders_than_those_of_the_data_are_refused(
    run: Path,
    autoencoder: Path,  # noqa: F811
    text_encoder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"autoencoder": autoencoder, "text_encoder": text_encoder}
    for name, folder in given.items():
        other = shutil.copytree(folder, tmp_path / name)
        (weights,) = other.glob("*.safetensors")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1  # of the last number
        weights.write_bytes(content)
        asked: dict[str, Any] = {**given, name: other}
        wanted = f"--{name}={other} has weights of sha256 .* was made with {folder.name} sha256:.*: give that"
        with pytest.raises(InputError, match=wanted):
            load_video(run, **asked)
        said: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(torch_models, "LARGE", 1)
            patch.setattr(torch_models, "EVERY", 0.0)
            copy = shutil.copytree(run, tmp_path / f"run_{name}")
            kept = json.loads((copy / "config.json").read_text())
            kept["data"]["encoding"][name] = ""  # the way out
            (copy / "config.json").write_text(json.dumps(kept))
            load_video(copy, say=said.append, **asked)
        size = f"{len(content) / 1e9:.1f}"
        assert f"SHA-256 of the weights in {other}: {size} GB to read" in said
        assert f"SHA-256 of the weights in {other}: {size} of {size} GB" in said


def test_films_begin_with_pictures_clips_and_films_of_pixels(
    run: Path,
    clips: Path,  # noqa: F811
    autoencoder: Path,  # noqa: F811
    text_encoder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Encoded chunk by chunk as prepare.py does it; a picture is the first latent frame of a still chunk."""
    with_both: dict[str, Any] = {"autoencoder": str(autoencoder), "text_encoder": str(text_encoder)}
    film = read_clip(clips / "good00.mp4", 16, (16, 24))
    encoder = VideoAutoencoder(autoencoder, 16, (16, 24), scale=1.0)
    np.savez(tmp_path / "clip.npz", arr_0=film)
    write_clip(tmp_path / "clip.mp4", film)
    write_clip(tmp_path / "long.mp4", np.concatenate([film, film[:3]]))
    write_clip(tmp_path / "large.mp4", film[:8].repeat(2, axis=1))
    Image.fromarray(film[0]).save(tmp_path / "first.png")
    Image.fromarray(film[0, :8]).save(tmp_path / "flat.png")
    stored = read_clip(tmp_path / "clip.mp4", 16, (16, 24))  # with what the codec lost
    still = film[:1].repeat(16, axis=0)
    begun = {"clip.npz": (film, 4), "clip.mp4": (stored, 4), "first.png": (still, 1)}

    def drawn(file: str, out: str, **settings: Any) -> np.ndarray:
        asked: dict[str, Any] = {"from_file": str(tmp_path / file), "steps": 1} | with_both | settings
        sample_video_to_file(run, out=str(tmp_path / out), prompts=["a red square"], **asked)
        with np.load(tmp_path / out) as content:
            return content["arr_0"]

    generator = load_video(run, **with_both)
    for file, (pixels, count) in begun.items():
        latents = encoder(pixels[None]).arrays["mean"][:, 0].astype(np.float32)[:, :count]
        given = generator.first_frames(pixels[None] if count > 1 else film[None, :1])
        np.testing.assert_allclose(given, latents, rtol=2e-3, atol=2e-3)
        if count > 1:
            scaled = ChunkDecoder(encoder, 4, 2.0, 0.5)
            np.testing.assert_array_equal(scaled.encode(pixels[None]), 2 * latents + 0.5)
        films = drawn(file, f"{file}.out.npz", frames=6)
        assert films.shape == (1, 24, 16, 24, 3)
        known = 4 * (count - count % 2)  # of whole chunks, which are decoded alone
        expected = generator.pixels(latents)[:, :known] if known else films[:, :0]
        assert np.abs(films[:, :known].astype(int) - expected).max(initial=0) <= 2
    assert drawn("clip.npz", "again.npz", frames=6, size="2x3").shape == (1, 24, 16, 24, 3)
    # What is drawn behind a picture depends on it.
    Image.fromarray(255 - film[0]).save(tmp_path / "other.png")
    one, other = (drawn(f"{name}.png", f"{name}.npz", frames=2) for name in ("first", "other"))
    assert np.abs(one[:, 4:].astype(int) - other[:, 4:]).max() > 2
    for file, message in {
        "long.mp4": "19 frames of pixels are no whole chunks of 8.*: give 16, or one picture",
        "large.mp4": "have 32x24 pixels, not 16x24",
        "flat.png": "has frames of 8x24, the films have 16x24: resize it, or .* with --size=1x3",
    }.items():
        with pytest.raises(InputError, match=message):
            drawn(file, "never.npz", frames=4)
    with pytest.raises(InputError, match=r"float32\) of latents or, with --autoencoder=DIR, \.png"):
        drawn("first.png", "never.npz", frames=4, autoencoder=None)


def test_latents_are_kept_that_make_no_chunk_or_cannot_be_decoded(
    run: Path,
    autoencoder: Path,  # noqa: F811
    text_encoder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings: dict[str, Any] = {"autoencoder": str(autoencoder), "text_encoder": str(text_encoder)}
    settings |= {"prompts": ["a red square"], "steps": 1, "out": str(tmp_path / "film.gif")}
    with pytest.raises(InputError, match="frames 1 to 1 are not finite"):
        sample_video_to_file(run, frames=4, later_guidance=1e39, **settings)  # beyond float32
    assert "the autoencoder makes pixels of whole chunks of 2 frames" in capsys.readouterr().err
    with np.load(tmp_path / "film_latents_first_1.npz") as content:
        assert content["arr_0"].shape == (1, 1, 2, 3, 4)

    def no_memory(autoencoder: VideoAutoencoder, z: Any) -> None:
        raise importlib.import_module("torch").OutOfMemoryError

    monkeypatch.setattr(VideoAutoencoder, "_decode", no_memory)
    state = str(tmp_path / "state.npz")
    with pytest.raises(InputError, match="2 chunks of 8 frames at a time do not fit the memory of"):
        sample_video_to_file(run, frames=4, save_state=state, **settings)
    assert "film_latents.npz" in capsys.readouterr().out
    with np.load(tmp_path / "film_latents.npz") as content:
        assert content["arr_0"].shape == (1, 4, 2, 3, 4)
    names = {"film_latents.npz", "film_latents_first_1.npz", "state.npz"}
    assert {file.name for file in tmp_path.iterdir()} == names
    with pytest.raises(InputError, match="the films are written there, too"):
        sample_video_to_file(run, frames=4, save_state=str(tmp_path / "film_latents.npz"), **settings)


def test_prompts_are_embedded_and_latents_decoded(autoencoder: Path, text_encoder: Path) -> None:  # noqa: F811
    plain = tiny_generator(
        vocabulary=0, text_length=8, text_width=16, channels=4, frame_height=2, frame_width=4
    )
    generator = VideoGenerator(
        plain.config,
        plain.model,
        plain.params,
        decoder=load_video_decoder(autoencoder, plain.config),
        text_encoder=load_text_encoder(text_encoder, plain.model),
    )
    films = generator.sample(["a red square moves left", "a blue square"], 4, steps=1)
    assert (films.dtype, films.shape) == (np.uint8, (2, 16, 16, 32, 3))
    assert np.ptp(films) > 0
    with pytest.raises(InputError, match="whole chunks of 2 frames"):
        generator.sample(["a blue square"], 3, steps=1)
    with pytest.raises(InputError, match="frames=2 after 1 frames"):
        generator.check_pixels(2, start=1)
    with pytest.raises(InputError, match="9 tokens, this model reads at most 8"):
        generator.texts(["a red square moves left right left right"])
    with pytest.raises(InputError, match="empty"):
        generator.texts(["a red square", " "])
    with pytest.raises(InputError, match="embeddings of 16 channels, the model reads 4"):
        load_text_encoder(text_encoder, tiny_generator(vocabulary=0).model)
    with pytest.raises(InputError, match="latents of 4 channels, the model draws 16"):
        load_video_decoder(autoencoder, tiny_generator(channels=16).config)
