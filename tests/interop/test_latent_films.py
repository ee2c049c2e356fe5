"""Films of a model of latents: prompts by a published text encoder, pixels by a video autoencoder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import prepare as prepare_command
from configs import common
from pom_jax.data import Records, read_manifest, torch_models
from pom_jax.data.video_autoencoder import VideoAutoencoder
from pom_jax.errors import InputError
from pom_jax.sampling import VideoGenerator, load_video
from pom_jax.sampling.video_decode import load_text_encoder, load_video_decoder
from pom_jax.training import loop
from tests.interop.test_video_data import autoencoder, clips, flags, text_encoder  # noqa: F401
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
