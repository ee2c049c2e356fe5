"""Clips and pictures with captions become latents and embeddings, by encoders in their published formats."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import prepare as prepare_command
from pom_jax import vae
from pom_jax.data import Records, pipeline, read_manifest, torch_models
from pom_jax.data.captioned import open_captioned
from pom_jax.data.captioned_jobs import plan
from pom_jax.data.clips import ENDINGS, UnusableClip, read_clip
from pom_jax.data.pictures import cover_crop
from pom_jax.data.text_encoder import TextEncoder
from pom_jax.data.video_autoencoder import VideoAutoencoder
from pom_jax.data.videos import clip_reader
from pom_jax.errors import InputError
from pom_jax.vae.names import parameter_shapes

torch = pytest.importorskip("torch")
av = pytest.importorskip("av")
AutoencoderKLCogVideoX = pytest.importorskip("diffusers").AutoencoderKLCogVideoX
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
WORDS = ("a", "red", "green", "blue", "square", "moves", "left", "right")
FRAMES, SIZE = 16, (16, 24)
COLOURS = {"red": (220, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 230)}


def random_weights(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    """CogVideoX's architecture, narrow and of random numbers: 8 times smaller in space, 4 times in time."""
    folder = tmp_path_factory.mktemp("autoencoder") / "cog"
    model = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, layers_per_block=1, latent_channels=4
    )
    random_weights(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory) -> Path:
    """A T5 as FLAN-T5 is published: with its decoder, and a tokenizer of word pieces."""
    folder = tmp_path_factory.mktemp("text") / "t5"
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    random_weights(transformers.T5Model(config)).save_pretrained(folder)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS]
    transformers.T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    return folder


def moving_square(
    frames: int, colour: str, direction: str, height: int = 36, width: int = 60, top: int = 10
) -> np.ndarray:
    clip = np.full((frames, height, width, 3), 20, np.uint8)
    for time_step in range(frames):
        left = 2 * time_step if direction == "right" else width - 12 - 2 * time_step
        clip[time_step, top : top + 12, max(0, left) : left + 12] = COLOURS[colour]
    return clip


def write_clip(path: Path, frames: np.ndarray, fps: int = 16) -> None:
    codec, pixels = ("gif", "rgb8") if path.suffix == ".gif" else ("mpeg4", "yuv420p")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, width=frames.shape[2], height=frames.shape[1])
        stream.pix_fmt = pixels
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "caption"), *rows])
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Twelve good clips, mp4 and gif, and one of each bad kind, listed in a table."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(12):
        colour, direction = tuple(COLOURS)[number % 3], ("left", "right")[number % 2]
        name = f"good{number:02d}.{'gif' if number == 5 else 'mp4'}"
        write_clip(folder / name, moving_square(FRAMES + number % 4, colour, direction, top=2 * number))
        rows.append((name, f"a {colour} square moves {direction}"))
    write_clip(folder / "short.mp4", moving_square(9, "red", "left"))
    write_clip(folder / "small.mp4", moving_square(FRAMES, "red", "left", 12, 20))
    write_clip(folder / "silent.mp4", moving_square(FRAMES, "red", "left"))
    (folder / "broken.mp4").write_bytes((folder / "good00.mp4").read_bytes()[:600])
    (folder / "text.mp4").write_text("no video at all")
    rows += [(f"{name}.mp4", "a red square") for name in ("short", "small", "broken", "text", "lost")]
    write_table(folder / "clips.csv", [*rows, ("silent.mp4", " ")])
    return folder


def flags(clips: Path, autoencoder: Path, text_encoder: Path, out: Path, *others: str) -> list[str]:
    return [
        "videos",
        f"--source={clips / 'clips.csv'}",
        f"--autoencoder={autoencoder}",
        f"--text-encoder={text_encoder}",
        f"--frames={FRAMES}",
        "--size=16x24",
        "--tokens=8",
        "--min-size=16",
        "--test-share=0.2",
        "--shard-clips=3",
        "--batch-size=1",
        "--workers=2",
        f"--out={out}",
        *others,
    ]


@pytest.fixture(scope="module")
def made(clips, autoencoder, text_encoder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "set"
    assert prepare_command.main(flags(clips, autoencoder, text_encoder, out, "--check=3")) == 0
    return out


def test_the_command_stores_what_the_encoders_make_and_lists_what_it_leaves_out(
    made, clips, autoencoder, text_encoder
):
    manifest = read_manifest(made)
    assert manifest.sample_shape == (4, 2, 3, 4)
    assert manifest.scale == pytest.approx(1.15258426)
    assert (manifest.classes, manifest.words) == ((), ())
    assert (manifest.autoencoder or "").startswith("cog sha256:")
    assert (manifest.text_encoder or "").startswith("t5 sha256:")
    assert manifest.made_by["torch"] == torch.__version__
    assert manifest.made_by["fps"] == "native"
    assert manifest.records("train") + manifest.records("test") == 12
    listed = (made / "unreadable.txt").read_text().splitlines()
    reasons = dict(line.split(": ", 1) for line in listed)
    assert reasons.pop("short.mp4") == "too short: 9 frames, --frames=16"
    assert reasons.pop("silent.mp4") == "no caption"
    assert reasons.pop("lost.mp4").startswith("FileNotFoundError")
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
        "broken.mp4": "InvalidDataError",
        "text.mp4": "InvalidDataError",
    }
    assert (manifest.made_by["unreadable"], manifest.made_by["below_min_size"]) == ("5", "1")
    with Image.open(f"{made}-check.png") as sheet:
        assert sheet.width > 3 * SIZE[1]

    # Record by record against diffusers and transformers themselves.
    vae = AutoencoderKLCogVideoX.from_pretrained(autoencoder).eval()
    t5 = transformers.T5EncoderModel.from_pretrained(text_encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_encoder)
    source = open_captioned(clips / "clips.csv", None, ENDINGS, "clips")
    expected = {}
    for name in source.names:
        if name.startswith("good"):
            x = torch.from_numpy(read_clip(clips / name, FRAMES, SIZE)).movedim(-1, 0)[None] / 127.5 - 1
            with torch.no_grad():
                chunks = [vae.encode(x[:, :, start : start + 8]).latent_dist for start in (0, 8)]
            expected[name] = [
                torch.cat([getattr(one, part) for one in chunks], 2)[0].movedim(0, -1).numpy()
                for part in ("mean", "std")
            ]
    captions = {}
    for index, name in enumerate(source.names):
        tokens = tokenizer(source.caption(index), padding="max_length", max_length=8, return_tensors="pt")
        with torch.no_grad():
            captions[name] = t5(**tokens).last_hidden_state[0].numpy(), tokens.attention_mask[0].numpy()
    seen = []
    for split in ("train", "test"):
        records = Records(made, split)
        batch = records.gather(np.arange(len(records)))
        x = pipeline.images(batch, jax.random.key(0), manifest)
        assert x.shape == (len(records), 4, 2, 3, 4)
        for mean, std, text, mask in zip(
            batch["mean"][:, 0], batch["std"][:, 0], batch["text"], batch["text_mask"], strict=True
        ):
            name = min(expected, key=lambda one: np.abs(expected[one][0] - mean).max())
            np.testing.assert_allclose(mean, expected[name][0], rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(std, expected[name][1], rtol=2e-3, atol=2e-3)
            wanted, wanted_mask = captions[name]
            np.testing.assert_array_equal(mask, wanted_mask)
            np.testing.assert_allclose(text, wanted * wanted_mask[:, None], rtol=2e-3, atol=2e-3)
            seen.append(name)
    assert sorted(seen) == sorted(expected)


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes_and_so_do_two_hosts(
    made, clips, autoencoder, text_encoder, tmp_path
):
    out = tmp_path / "set"
    words = [sys.executable, "prepare.py", *flags(clips, autoencoder, text_encoder, out)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    growing, deadline = tmp_path / "set.unfinished", time.monotonic() + 100
    while not list(growing.glob("t*-*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    shards = [path.with_suffix(".array_record") for path in growing.glob("t*-*.json")]
    whole = {path.name: path.stat().st_mtime_ns for path in shards}
    assert 0 < len(whole) < sum(len(shards) for shards in read_manifest(made).splits.values())
    assert prepare_command.main(flags(clips, autoencoder, text_encoder, out)) == 0
    assert read_manifest(out).splits == read_manifest(made).splits
    assert {name: (out / name).stat().st_mtime_ns for name in whole} == whole, "no shard was made twice"
    assert (out / "unreadable.txt").read_text() == (made / "unreadable.txt").read_text()

    shared = tmp_path / "shared"
    for host in ("1", "0"):
        more = ("--hosts=2", f"--host={host}")
        assert prepare_command.main(flags(clips, autoencoder, text_encoder, shared, *more)) == 0
    assert read_manifest(shared).splits == read_manifest(made).splits


def test_latents_decode_in_chunks_of_their_own(autoencoder, clips):
    model = VideoAutoencoder(autoencoder, FRAMES, SIZE)
    latents = model(read_clip(clips / "good00.mp4", FRAMES, SIZE)[None]).arrays["mean"][:, 0]
    whole = model.decode(latents)
    assert (whole.shape, whole.dtype) == ((1, FRAMES, *SIZE, 3), np.uint8)
    alone = model.decode(latents[:, 2:]).astype(int)
    np.testing.assert_allclose(
        alone, whole[:, 8:], rtol=0, atol=1
    )  # a batch of another size rounds otherwise
    vae = AutoencoderKLCogVideoX.from_pretrained(autoencoder).eval()
    with torch.no_grad():
        z = torch.from_numpy(latents[:, :2].astype(np.float32)).movedim(-1, 1)
        pixels = vae.decode(z).sample.movedim(1, -1).numpy()
    assert np.abs(127.5 * (pixels.clip(-1, 1) + 1) - whole[:, :8]).max() < 0.51
    with pytest.raises(InputError, match="3 frames of latents are no whole chunks of 2"):
        model.decode(latents[:, :3])


def test_an_autoencoder_that_decodes_to_another_number_of_frames_is_refused(autoencoder, tmp_path):
    other = shutil.copytree(autoencoder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "temporal_compression_ratio": 3}))  # is 2
    model = VideoAutoencoder(other, 12, SIZE, chunk_frames=12)
    with pytest.raises(InputError, match="decodes a chunk of 12 frames to 8"):
        model.decode(np.zeros((1, 4, 2, 3, 4), np.float16))


def test_frames_are_cropped_in_the_middle_and_chosen_by_time(tmp_path):
    frames = np.stack([np.full((30, 80, 3), 10 * number, np.uint8) for number in range(20)])
    frames[:, :, :20] = 255
    write_clip(tmp_path / "a.mp4", frames, fps=20)
    with av.open(str(tmp_path / "a.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    native = read_clip(tmp_path / "a.mp4", 20, (15, 20))
    cropped = np.stack([cover_crop(Image.fromarray(one), 15, 20) for one in decoded])
    np.testing.assert_array_equal(native, cropped)
    assert native[0].max() < 60, "the bright edge is cropped away"
    # 8 a second of 20: frames 0, 2, 5, 7, 10, 12, 15, 17.
    np.testing.assert_array_equal(
        read_clip(tmp_path / "a.mp4", 8, (15, 20), fps=8), native[[0, 2, 5, 7, 10, 12, 15, 17]]
    )
    with pytest.raises(UnusableClip, match="too short: 8 frames at --fps=8, --frames=9"):
        read_clip(tmp_path / "a.mp4", 9, (15, 20), fps=8)
    with pytest.raises(UnusableClip, match="too slow: 20 frames a second, --fps=24"):
        read_clip(tmp_path / "a.mp4", 8, (15, 20), fps=24)
    # Turned in the matrix of its track, as telephones do.
    data = (tmp_path / "a.mp4").read_bytes()
    upright = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    turned = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    assert data.count(upright) == 2  # of the film and of its track
    head, track = data[: data.rindex(upright)], data[data.rindex(upright) :]
    (tmp_path / "turned.mp4").write_bytes(head + turned + track[len(upright) :])
    clip = read_clip(tmp_path / "turned.mp4", 2, (80, 30))
    np.testing.assert_array_equal(clip, np.rot90(np.stack(decoded[:2]), -1, axes=(1, 2)))


def test_captions_are_encoded_one_as_many_and_cut(text_encoder):
    encoder = TextEncoder(text_encoder, 4)
    captions = ["a red square moves left", "", "a blue"]
    many = encoder(captions)
    assert many["text_mask"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]
    for row, caption in enumerate(captions):
        np.testing.assert_allclose(encoder([caption])["text"][0], many["text"][row], atol=2e-3)
    assert (many["text"][1, 1:] == 0).all()
    assert encoder([])["text"].shape == (0, 4, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--frames=12",), "--frames=12 must be a multiple of --chunk-frames=8"),
        (("--chunk-frames=6",), "--chunk-frames=6: this autoencoder needs a multiple of 8"),
        (("--chunk-frames=4",), "--chunk-frames=4: this autoencoder needs a multiple of 8, an even number"),
        (("--chunk-frames=12", "--frames=24"), "--chunk-frames=12: this autoencoder needs a multiple of 8"),
        (("--size=16x20",), "--size=16x20: this autoencoder needs multiples of 8"),
        (("--size=16by24",), "--size=16by24 must be height x width"),
        (("--tokens=0",), "--tokens=0 must be at least 1"),
        (("--fps=0",), "--fps=0.0 must be above 0"),
        (("--test-share=0",), "--test-share=0 of 18 clips holds out 0"),
        (("--precision=float16",), "--precision = 'float16' is unknown. Did you mean 'bfloat16'"),
        (("--device=warp",), "--device=warp cannot be used"),
        (("--autoencoder={t5}",), "_class_name = None is unknown"),
        (("--text-encoder={cog}",), "--text-encoder={cog} cannot be loaded"),
        (("--source=nowhere.csv",), "--source=nowhere.csv does not exist"),
        (("--hosts=2",), "--hosts=2 goes with --host=I"),
        (("--max-unreadable=4",), "5 clips cannot be used, more than --max-unreadable=4"),
    ],
)
def test_what_cannot_be_used_is_refused(changes, message, clips, autoencoder, text_encoder, tmp_path, capsys):
    changes = [change.format(t5=text_encoder, cog=autoencoder) for change in changes]
    names = {change.split("=")[0] for change in changes}
    words = [
        word
        for word in flags(clips, autoencoder, text_encoder, tmp_path / "set")
        if word.split("=")[0] not in names
    ]
    assert prepare_command.main([*words, *changes]) == 2
    error = capsys.readouterr().err
    assert message.format(cog=autoencoder) in error
    assert not (tmp_path / "set").exists()


def test_checksums_of_large_weights_are_announced(
    clips, autoencoder, text_encoder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch_models, "LARGE", 0)
    words = flags(clips, autoencoder, text_encoder, tmp_path / "set", "--test-share=0")
    assert prepare_command.main(words) == 2
    said = capsys.readouterr().out
    for folder in (autoencoder, text_encoder):
        assert f"SHA-256 of the weights in {folder}: " in said


def test_encoders_whose_files_are_damaged_or_of_another_model_are_refused(
    autoencoder, text_encoder, tmp_path
):
    cut = shutil.copytree(autoencoder, tmp_path / "cut")
    weights = cut / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"--autoencoder=.*cut cannot be loaded as AutoencoderKLCogVideoX"):
        VideoAutoencoder(cut, FRAMES, SIZE)
    with pytest.raises(InputError, match=r"has no config.json, but a folder vae: give"):
        VideoAutoencoder(shutil.copytree(autoencoder, tmp_path / "pipeline" / "vae").parent, FRAMES, SIZE)
    pointer = shutil.copytree(autoencoder, tmp_path / "pointer")
    (pointer / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"pointer: config.json is no JSON in UTF-8: Expecting value"):
        VideoAutoencoder(pointer, FRAMES, SIZE)
    about = json.loads((autoencoder / "config.json").read_text())
    for change, message in (
        ({"scaling_factor": None}, "scaling_factor is null in config.json; write the number there"),
        ({"block_out_channels": [4, 4]}, "cannot be loaded as AutoencoderKLCogVideoX: list index"),
    ):
        (pointer / "config.json").write_text(json.dumps(about | change))
        with pytest.raises(InputError, match=message):
            VideoAutoencoder(pointer, FRAMES, SIZE)
    deeper = shutil.copytree(text_encoder, tmp_path / "deeper")
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    with pytest.raises(InputError, match="lacks 9 tensors of AutoModelForTextEncoding"):
        TextEncoder(deeper)
    wordless = shutil.copytree(text_encoder, tmp_path / "wordless")
    for path in wordless.glob("token*"):
        path.unlink()
    with pytest.raises(InputError, match=r"has no tokenizer: put .*tokenizer.json there"):
        TextEncoder(wordless)
    other = shutil.copytree(text_encoder, tmp_path / "other")
    pieces = [(f"▁{number}", -3.0) for number in range(40)]
    transformers.T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]).save_pretrained(
        other
    )
    with pytest.raises(InputError, match=r"its tokenizer has \d+ tokens, the encoder 32"):
        TextEncoder(other)


def test_clips_of_a_folder_have_their_captions_beside_them_or_in_a_table(clips, autoencoder, text_encoder):
    beside = open_captioned(clips, None, ENDINGS, "clips")
    assert beside.refusal(0) == "no caption"
    assert beside.others == {".csv": 1}
    tabled = open_captioned(
        clips, write_table(clips / "one.csv", [("./good00.mp4", "a red square")]), ENDINGS, "clips"
    )
    (clips / "one.csv").unlink()
    assert (tabled.names[0], tabled.caption(0)) == ("good00.mp4", "a red square")
    assert sum(tabled.refusal(index) is None for index in range(len(tabled))) == 1
    encoders = VideoAutoencoder(autoencoder, FRAMES, SIZE), TextEncoder(text_encoder)
    with pytest.raises(InputError, match="--shard-clips=0 must be at least 1"):
        plan(tabled, clip_reader(), *encoders, shard=0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Nine good pictures, one without a caption and a broken one, with texts beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(10):
        picture = moving_square(1 + number, ("red", "green")[number % 2], "right")[-1]
        Image.fromarray(picture).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red\n square\n" if number else "")
    (folder / "10.jpg").write_bytes(b"broken")
    (folder / "10.txt").write_text("a blue square")
    return folder


def caption_flags(folder: Path, text_encoder: Path, out: Path, *others: str) -> list[str]:
    words = ["captions", f"--source={folder}", f"--text-encoder={text_encoder}", "--size=16", "--tokens=6"]
    return [*words, "--test-share=0.2", "--batch-size=4", "--shard-pictures=4", f"--out={out}", *others]


@pytest.mark.parametrize("mirror", [False, True])
def test_pictures_with_captions_become_clips_of_one_frame(mirror, pictures, text_encoder, tmp_path, capsys):
    words = caption_flags(pictures, text_encoder, tmp_path / "set", *["--mirror"] * mirror)
    assert prepare_command.main([*words, "--check"]) == 0
    assert "crops above, what is stored below: identical" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "set")
    assert manifest.fields["mean"].shape == (1 + mirror, 1, 16, 16, 3)
    assert manifest.made_by["cut_captions"] == "0"
    listed = (tmp_path / "set" / "unreadable.txt").read_text().splitlines()
    assert listed[0] == "0.png: no caption"
    assert re.match("10.jpg: UnidentifiedImageError", listed[1])
    records = Records(tmp_path / "set", "train")
    batch = records.gather(np.arange(len(records)))
    crops = [cover_crop(Image.open(pictures / f"{n}.png"), 16, 16) for n in range(1, 10)]
    for mean in batch["mean"]:
        assert any(np.array_equal(mean[0, 0], crop) for crop in crops)
        if mirror:
            np.testing.assert_array_equal(mean[1, 0], mean[0, 0][:, ::-1])
    np.testing.assert_array_equal(batch["text"][0], TextEncoder(text_encoder, 6)(["a red square"])["text"][0])


def test_the_check_tells_the_captions_of_a_file_from_one_another(text_encoder, tmp_path, capsys):
    names = [f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        Image.new("RGB", (16, 16), (20 * number,) * 3).save(tmp_path / name)
    rows = [(name, caption) for name in names for caption in ("", "a red square")]
    table = write_table(tmp_path / "pictures.csv", rows)
    words = caption_flags(table, text_encoder, tmp_path / "set", "--shard-pictures=100", "--check=3")
    assert prepare_command.main(words) == 0
    assert "crops above, what is stored below: identical" in capsys.readouterr().out


def test_pictures_with_captions_become_latents_of_the_librarys_own_autoencoder(
    pictures, text_encoder, tmp_path, capsys
):
    config = vae.AutoencoderConfig(
        block_out_channels=(4, 8), norm_num_groups=2, use_quant_conv=False, mid_block_add_attention=False
    )
    rng = np.random.default_rng(0)
    leaves = {path: 0.1 * rng.normal(size=shape) for path, shape in parameter_shapes(config).items()}
    model, params = vae.AutoencoderKL(config), traverse_util.unflatten_dict(leaves)
    vae.save_autoencoder(tmp_path / "vae", model, params)
    words = caption_flags(pictures, text_encoder, tmp_path / "set", f"--autoencoder={tmp_path / 'vae'}")
    assert prepare_command.main([*words, "--tokens=3"]) == 0
    assert "cut_captions: 9, longer than --tokens=3" in capsys.readouterr().out  # "a red square" and its end
    manifest = read_manifest(tmp_path / "set")
    assert manifest.made_by["cut_captions"] == "9"
    assert manifest.fields["std"].shape == (1, 1, 8, 8, 4)
    assert manifest.scale == 0.18215
    records = Records(tmp_path / "set", "train")
    batch = records.gather(np.arange(len(records)))
    crops = np.stack([cover_crop(Image.open(pictures / f"{n}.png"), 16, 16) for n in range(1, 10)])
    moments: Any = model.apply({"params": params}, crops / np.float32(127.5) - 1, method="encode")
    means, stds = moments
    for mean, std in zip(batch["mean"][:, 0, 0], batch["std"][:, 0, 0], strict=True):
        nearest = np.abs(means - mean).max(axis=(1, 2, 3)).argmin()
        np.testing.assert_allclose(mean, means[nearest], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(std, stds[nearest], rtol=2e-3, atol=2e-3)
    # The same command finds it made.
    assert prepare_command.main([*words, "--tokens=3"]) == 0
