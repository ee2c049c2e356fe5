"""The authors' text-to-video tensors: in and out bit for bit, into workdirs and back, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pom_jax import interop, models
from pom_jax.errors import InputError
from pom_jax.interop.listing import listing
from pom_jax.interop.workdirs import export_workdir
from pom_jax.models.resample import fit_parameters
from pom_jax.training import checkpoint
from tests.golden.case import load
from tests.golden.cases_video import model_of
from tests.golden.run import DATA
from tests.official_models import normal, same_bits, theirs, told

ROOT = Path(__file__).resolve().parents[1]
CASE = load(DATA / "video_model_blockcausal.npz")
TENSORS = CASE.group("param")
CLIP = {"frames": 4, "frame_height": 4, "frame_width": 6}
TOLD: dict[str, Any] = CLIP | {"patch_size": 2, "frame_patch": 2, "degree": 2}
TOLD |= {"text_length": 5, "frame_causal": True}


def without_frequencies(tensors: dict[str, Any]) -> dict[str, Any]:
    """Theirs differ in the last bits."""
    return {name: array for name, array in tensors.items() if name != "freqs"}


@pytest.mark.smoke
def test_the_official_model_is_recognised_and_comes_back_bit_for_bit() -> None:
    found = interop.import_video_model(TENSORS, **TOLD)
    assert (found.layout, found.weights) == ("text_video", "online")
    assert found.model.clone(dtype=None) == model_of(CASE)
    back = interop.export_model(found.model, found.params)
    np.testing.assert_allclose(back["freqs"], TENSORS["freqs"], rtol=1e-6)
    same_bits(without_frequencies(back), without_frequencies(TENSORS))
    again = interop.import_video_model(back, **TOLD)
    same_bits(again.params, found.params)


def test_the_imported_model_computes_what_theirs_does() -> None:
    found = interop.import_video_model(TENSORS, **TOLD)
    inputs = {name: jnp.asarray(array) for name, array in CASE.group("in").items()}
    text = models.Text(inputs["text"], inputs["text_mask"])
    clips = inputs["video"].transpose(0, 2, 3, 4, 1)
    y = jax.jit(found.model.apply)({"params": found.params}, clips, inputs["time"] / 1000, text)
    official = CASE.arrays["out/y"].transpose(0, 2, 3, 4, 1)
    assert np.abs(y - official).max() < 5e-5 * np.abs(official).max()
    plain = found.model.clone(unit_gates=False)  # as a recipe starts from it
    params = fit_parameters(found.params, found.params, gates=1.0)
    z = jax.jit(plain.apply)({"params": params}, clips, inputs["time"] / 1000, text)
    np.testing.assert_allclose(z, y, atol=1e-5 * np.abs(y).max())


def test_gates_of_models_made_here_come_back_bit_for_bit() -> None:
    found = interop.import_video_model(TENSORS, **TOLD)
    model = found.model.clone(unit_gates=False)
    tensors = interop.export_model(model, found.params)
    assert {n for n, a in tensors.items() if a.dtype != np.float32} == {
        f"layers.{i}.gate_mlp.1.bias" for i in range(2)
    }
    back = interop.import_video_model(tensors, **TOLD)
    assert back.model.clone(dtype=None) == model.clone(dtype=None)
    same_bits(back.params, found.params)


def test_averages_are_taken_out_of_wrapped_checkpoints_unless_the_others_are_asked_for() -> None:
    online = {f"model._orig_mod.{name}": array for name, array in TENSORS.items()}
    average = {f"ema.ema_model._orig_mod.{name}": 2 * array for name, array in TENSORS.items()}
    for name in ("freqs", "ema.step"):
        average[f"ema.ema_model._orig_mod.{name}" if name == "freqs" else name] = (
            TENSORS["freqs"] if name == "freqs" else np.array([7])
        )
    found = interop.import_video_model(online | average, **TOLD)
    assert found.weights == "ema"
    same_bits(found.params["out"]["bias"], 2 * TENSORS["out_proj.bias"])
    found = interop.import_video_model(online | average, weights="online", **TOLD)
    same_bits(found.params["out"]["bias"], TENSORS["out_proj.bias"])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {},
            dict.fromkeys(CLIP),
            "do not tell frames and frame_height and frame_width; pass frames=, frame_",
        ),
        ({}, {"patch_size": None, "degree": None}, "do not tell patch_size and degree and channels"),
        ({}, {"patch_size": 3}, r"32 columns, not a multiple of frame_patch \* patch_size\^2 = 18"),
        ({}, {"degree": 3}, "128 rows, not a multiple of 96"),
        ({}, {"preset": "Polymorpher-S/2"}, "width = 384, says Polymorpher-S/2, but .* have 32"),
        ({}, {"objective": "sit"}, "the tensors are of HoMM's models"),
        ({}, {"weights": "ema"}, "weights = 'ema' are not in the file"),
        ({"freqs": normal(16)}, {}, "freqs .* are no frequencies"),
        ({"freqs": np.arange(16)}, {}, "dtype of freqs: int64"),
        ({"out_proj.bias": normal(3)}, {}, r"out_proj.bias: \[3\], but \[32\] goes with"),
        (
            {"layers.1.c_hom.ho_proj.weight": normal(2, 2)},
            {},
            r"c_hom.ho_proj.weight: \[2, 2\], but \[128, 32\]",
        ),
    ],
)
def test_what_the_tensors_do_not_tell_or_tell_otherwise(
    change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        interop.import_video_model(TENSORS | change, **(TOLD | options))


def test_all_names_that_do_not_fit_are_listed() -> None:
    tensors = TENSORS | {"head.weight": normal(2, 3)}
    del tensors["layers.1.ffw.2.bias"]
    with pytest.raises(InputError) as error:
        interop.import_video_model(tensors, **TOLD)
    assert str(error.value).splitlines() == [
        "the tensors are not those of HoMM's TextVideoDiH:",
        "  missing: layers.1.ffw.2.bias [32]",
        "  left over: head.weight [2, 3]",
    ]


def test_models_for_images_and_for_video_are_told_apart() -> None:
    with pytest.raises(InputError, match="TextVideoDiH: import_video_model makes a model of them"):
        interop.import_model(TENSORS)
    with pytest.raises(InputError, match="HoMM's DiH: import_model makes a model of them"):
        interop.import_video_model(theirs("dih"), **TOLD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "self_first"}, "model.order = 'self_first' has no place in HoMM's TextVideoDiH"),
        ({"mixer": "attention"}, "model.mixer = 'attention' has no place"),
        ({"mixer": "hybrid", "num_heads": 2}, "model.mixer = 'hybrid' has no place"),
        ({"attention_every": 2, "num_heads": 2}, "model.attention_every = 2 has no place"),
        ({"rotary": True, "expansion": 3}, "model.rotary = True has no place"),
        ({"vocabulary": 9}, "model.vocabulary = 9 has no place"),
        ({"positions": "learned"}, "model.positions = 'learned' has no place"),
        ({"pooled_text": True}, "model.pooled_text = True has no place"),
        ({"frame_causal": True, "past_frames": 1}, "model.past_frames = 1 has no place"),
        ({"depth": 3}, r"shape of blocks/.*: \[2, .*, but the model's is \[3"),
    ],
)
def test_models_that_the_authors_do_not_have_are_not_exported(options: dict[str, Any], message: str) -> None:
    found = interop.import_video_model(TENSORS, **TOLD)
    with pytest.raises(InputError, match=message):
        interop.export_model(found.model.clone(**options), found.params)


def test_a_file_is_listed_with_what_has_to_be_given() -> None:
    lines = list(listing(TENSORS))
    assert lines[0].startswith("online: HoMM's TextVideoDiH: width 32, depth 2, degree * expansion 4")
    assert "frame_patch * patch_size^2 * channels 32, text_width 24" in lines[0]
    assert lines[1] == (
        "  to be given: objective, patch_size, degree, frames, frame_height, frame_width, frame_patch"
    )
    assert "missing: out_proj.weight" in "".join(listing({"text_emb.weight": normal(2, 2)}))


def test_the_command_makes_a_workdir_that_goes_back_to_the_same_tensors(tmp_path: Path) -> None:
    file, out = tmp_path / "official.safetensors", tmp_path / "run"
    interop.write_tensors(file, TENSORS)
    sizes = ["--clip=4x4x6", "--patch_size=2", "--frame_patch=2", "--degree=2", "--text_length=5"]
    done = command("import", file, f"--out={out}", "--objective=flow", "--frame_causal", *sizes)
    assert done.returncode == 0, done.stderr
    assert "text_video (online), 2 layers of width 32, texts of 24 channels, 4 x 4 x 6 x 4" in done.stdout
    config = checkpoint.load_config(out)
    assert (config.model.family, config.model.frame_causal, config.model.text_length) == (
        "polymorpher",
        True,
        5,
    )
    assert config.diffusion.path == "flow"
    back = tmp_path / "back.safetensors"
    assert export_workdir(out, back) == 0
    same_bits(without_frequencies(interop.read_tensors(back)), without_frequencies(TENSORS))


def test_sizes_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    from configs import common
    from pom_jax.interop.workdirs import import_workdir

    video, image = tmp_path / "video.safetensors", tmp_path / "image.safetensors"
    interop.write_tensors(video, TENSORS)
    interop.write_tensors(image, theirs("dih"))
    with pytest.raises(InputError, match="image_size = 32, but the file holds a model for video"):
        import_workdir(video, tmp_path / "a", common.base(), objective="flow", image_size=32)
    with pytest.raises(InputError, match="frames = 4, but the file holds a model for images"):
        import_workdir(
            image, tmp_path / "b", common.base(), **(told("dih") | {"objective": "flow", "frames": 4})
        )


def command(*words: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pom_jax.interop", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=240,
    )
