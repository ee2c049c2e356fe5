"""The autoencoder: sizes and shapes, files that come back bit for bit, chunks, devices, mistakes told."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pom_jax import vae
from pom_jax.errors import InputError
from pom_jax.interop import read_tensors, write_tensors
from pom_jax.vae.config import from_diffusers, to_diffusers
from pom_jax.vae.files import WEIGHTS
from pom_jax.vae.names import OLD_NAMES, parameter_shapes
from tests.layers import gap, normal, quick_jit

SMALL = vae.AutoencoderConfig(block_out_channels=(4, 8), norm_num_groups=2)
TINY = vae.PRESETS["tiny"]


def parameters(config: vae.AutoencoderConfig) -> dict[str, Any]:
    """Random ones, norms and biases included, without compiling an initialiser."""
    leaves = {
        path: jnp.asarray(normal(i, *shape) / math.sqrt(max(1, math.prod(shape[:-1]))))
        for i, (path, shape) in enumerate(parameter_shapes(config).items())
    }
    return traverse_util.unflatten_dict(leaves)


def folder(path: Path, config: vae.AutoencoderConfig = TINY) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder of diffusers, and its tensors."""
    vae.save_autoencoder(path, vae.AutoencoderKL(config), parameters(config))
    return path, read_tensors(path / WEIGHTS[0])


@pytest.mark.parametrize(
    ("preset", "count", "latent"),
    [("sd", 83_653_863, 4), ("flux", 83_819_683, 16), ("tiny", 67_231, 4)],
)
def test_presets_have_their_parameters_and_shapes(preset: str, count: int, latent: int) -> None:
    config = vae.read_config(preset)
    assert sum(map(math.prod, parameter_shapes(config).values())) == count
    model, pixels = vae.AutoencoderKL(config), jax.ShapeDtypeStruct((2, 64, 32, 3), jnp.float32)
    (mean, std), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, method="encode"), pixels
    )
    assert mean.shape == std.shape == (2, 8, 4, latent)
    variables = jax.eval_shape(model.init, jax.random.key(0), pixels)
    assert (
        jax.eval_shape(lambda p, z: model.apply(p, z, method="decode"), variables, mean).shape == pixels.shape
    )


@pytest.mark.smoke
def test_files_come_back_bit_for_bit(tmp_path: Path) -> None:
    params = parameters(TINY)
    vae.save_autoencoder(tmp_path / "a", vae.AutoencoderKL(TINY), params)
    model, found, scale, shift = vae.load_autoencoder(tmp_path / "a")
    assert model == vae.AutoencoderKL(TINY)
    assert (scale, shift) == (0.18215, 0.0)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)

    file = tmp_path / "a" / WEIGHTS[0]
    assert vae.weights_sha256(tmp_path / "a") == vae.weights_sha256(file)
    assert vae.weights_sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    _, alone, *_ = vae.load_autoencoder(file.rename(tmp_path / "b.safetensors"), "tiny")
    jax.tree.map(np.testing.assert_array_equal, alone, params)
    with pytest.raises(InputError, match=r"config\.json; give another folder"):
        vae.save_autoencoder(tmp_path / "a", model, params)


@pytest.mark.parametrize("preset", vae.PRESETS)
def test_configs_come_back_from_json(preset: str, tmp_path: Path) -> None:
    content = to_diffusers(vae.PRESETS[preset]) | {"_diffusers_version": "0.30.0", "force_upcast": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert vae.read_config(tmp_path / "config.json") == vae.PRESETS[preset]


def test_fields_that_a_config_leaves_out_or_empty_mean_what_they_mean_to_diffusers() -> None:
    content = {"shift_factor": None, "latents_mean": None, "sample_size": [32, 32], "norm_num_groups": 32}
    assert from_diffusers(content) == vae.AutoencoderConfig()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_class_name": "VQModel"}, "_class_name = 'VQModel' cannot be followed, only 'AutoencoderKL'"),
        ({"act_fn": "gelu"}, "act_fn = 'gelu' cannot be followed, only 'silu' or 'swish'"),
        ({"latents_mean": [0.5]}, r"latents_mean = \[0.5\] cannot be followed, only None"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "the 4 resolutions need"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, r"up_block_types = \['UpDecoderBlock2D'\] cannot"),
        ({"block_out_channels": [8, 9]}, r"\(8, 9\) are not all multiples of norm_num_groups = 4"),
        ({"layers_per_block": 0}, "layers_per_block = 0 must be a whole number above 0"),
        ({"block_out_channels": 8}, "block_out_channels = 8 must be channels above 0"),
        ({"use_quant_conv": 1}, "use_quant_conv = 1 must be true or false"),
        ({"scaling_factor": 0}, "scaling_factor = 0 must be above 0"),
        ({"shift_factor": "no"}, "shift_factor = 'no' must be a finite number"),
        ({"quant_bits": 4}, "the fields quant_bits are unknown"),
    ],
)
def test_configs_that_cannot_be_followed_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        from_diffusers(to_diffusers(TINY) | change)


def test_old_names_of_attention_are_read(tmp_path: Path) -> None:
    path, tensors = folder(tmp_path / "new")
    _, params, *_ = vae.load_autoencoder(path)
    old = {}
    for name, tensor in tensors.items():
        for before, after in OLD_NAMES.items():
            name = name.replace(f"attentions.0.{after}.", f"attentions.0.{before}.")
        old[name] = tensor
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
    write_tensors(tmp_path / "old.safetensors", old)
    _, found, *_ = vae.load_autoencoder(tmp_path / "old.safetensors", "tiny")
    jax.tree.map(np.testing.assert_array_equal, found, params)

    write_tensors(tmp_path / "both.safetensors", tensors | old)
    with pytest.raises(InputError, match="twice, by its old name and by its new one"):
        vae.load_autoencoder(tmp_path / "both.safetensors", "tiny")


def test_wrong_tensors_are_listed_in_one_message(tmp_path: Path) -> None:
    _, tensors = folder(tmp_path / "whole")
    del tensors["encoder.conv_in.weight"]
    tensors |= {
        "decoder.conv_in.weight": np.zeros((16, 5, 3, 3), np.float32),
        "loss.logvar": np.zeros((), np.float32),
        "quant_conv.bias": np.zeros(8, np.int32),
    }
    write_tensors(tmp_path / "wrong.safetensors", tensors)
    with pytest.raises(InputError) as error:
        vae.load_autoencoder(tmp_path / "wrong.safetensors", TINY)
    assert str(error.value).splitlines()[1:] == [
        "  shape of decoder.conv_in.weight: [16, 5, 3, 3], but [16, 4, 3, 3] goes with the config",
        "  missing: encoder.conv_in.weight",
        "  unexpected: loss.logvar",
        "  dtype of quant_conv.bias: int32, floating-point numbers are needed",
    ]


def test_files_that_are_no_autoencoder_say_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist; give a folder"):
        vae.load_autoencoder(tmp_path / "nowhere")
    (tmp_path / "pipeline" / "vae").mkdir(parents=True)
    with pytest.raises(InputError, match=r"but a folder vae; give .*pipeline/vae"):
        vae.load_autoencoder(tmp_path / "pipeline")
    weights = tmp_path / "first.safetensors"
    write_tensors(weights, {"encoder.down.0.block.0.norm1.weight": np.zeros(8, np.float32)})
    with pytest.raises(InputError, match=r"pass config, a preset such as 'sd'"):
        vae.load_autoencoder(weights)
    with pytest.raises(InputError, match="from_single_file"):
        vae.load_autoencoder(weights, "tiny")
    with pytest.raises(InputError, match="Did you mean 'tiny'"):
        vae.load_autoencoder(weights, "tine")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="holds a list"):
        vae.load_autoencoder(weights)
    with pytest.raises(InputError, match=r"missing: decoder/conv_in/bias(.|\n)*unexpected: wrong"):
        vae.save_autoencoder(tmp_path / "out", vae.AutoencoderKL(TINY), {"wrong": np.zeros(1, np.float32)})
    assert not (tmp_path / "out").exists()


def test_log_variances_are_clamped_and_the_mean_is_not() -> None:
    model, params = vae.AutoencoderKL(SMALL), parameters(SMALL)
    bias = jnp.array([100.0, -100, 0, 0, 100, -100, 100, -100])
    params["quant_conv"] = {"kernel": 0 * params["quant_conv"]["kernel"], "bias": bias}
    pixels = normal(0, 1, 4, 4, 3)
    mean, std = quick_jit(lambda p: model.apply({"params": p}, pixels, method="encode"))(params)
    np.testing.assert_array_equal(mean, np.broadcast_to(bias[:4], (1, 2, 2, 4)))
    expected = np.exp([10.0, -15, 10, -15])
    np.testing.assert_allclose(std, np.broadcast_to(expected, std.shape), rtol=1e-6)


def test_chunks_are_the_whole_in_the_memory_of_a_chunk() -> None:
    """63 images by two, so the last chunk is filled up; one array of all of them would be too much."""
    model, params = vae.AutoencoderKL(SMALL), parameters(SMALL)
    pixels = normal(0, 63, 16, 8, 3)

    @quick_jit
    def whole(p: Any, x: jax.Array) -> Any:
        mean, std = model.apply({"params": p}, x, method="encode")
        return mean, std, model.apply({"params": p}, mean, method="decode")

    @quick_jit
    def chunked(p: Any, x: jax.Array) -> Any:
        mean, std = vae.encode_in_chunks(model, p, x, 2)
        return mean, std, vae.decode_in_chunks(model, p, mean, chunk=2)

    program = chunked.lower(params, pixels).compile()
    assert program.memory_analysis().temp_size_in_bytes < 63 * 16 * 8 * max(SMALL.block_out_channels) * 4
    for ours, wanted in zip(program(params, pixels), whole(params, pixels), strict=True):
        assert ours.shape == wanted.shape
        assert gap(ours, wanted) < 3e-6


def test_bfloat16_gives_float32_of_about_the_same() -> None:
    params, latents = parameters(SMALL), normal(0, 2, 4, 4, 4)

    def again(dtype: Any) -> jax.Array:
        model = vae.AutoencoderKL(SMALL, dtype)
        return quick_jit(lambda p: model.apply({"params": p}, latents, method="decode"))(params)

    exact, rough = again(jnp.float32), again(jnp.bfloat16)
    assert rough.dtype == jnp.float32
    assert 1e-4 < gap(rough, exact) < 0.1


@pytest.mark.parametrize(
    ("method", "shape", "told"),
    [
        ("encode", (1, 3, 8, 8), "must be .B, H, W, 3., channels last"),
        ("encode", (1, 7, 8, 3), "height and width must be multiples of 2"),
        ("decode", (1, 8, 8, 16), "latents .* must be .B, H, W, 4."),
        ("decode", (8, 8, 4), "latents .* must be .B, H, W, 4."),
    ],
)
def test_shapes_that_do_not_fit_are_told(method: str, shape: tuple[int, ...], told: str) -> None:
    chunks = {"encode": vae.encode_in_chunks, "decode": vae.decode_in_chunks}[method]
    with pytest.raises(InputError, match=told):
        chunks(vae.AutoencoderKL(SMALL), parameters(SMALL), np.zeros(shape, np.float32), 2)
    with pytest.raises(InputError, match="chunk = 0 must be"):
        chunks(vae.AutoencoderKL(SMALL), parameters(SMALL), np.zeros(shape, np.float32), 0)


SHARDED = """
import json, re
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from pom_jax import vae
from tests.layers import gap, normal, quick_jit
from tests.test_vae import SMALL, parameters

model, params = vae.AutoencoderKL(SMALL), parameters(SMALL)
def decode(p, z):
    return vae.decode_in_chunks(model, p, z, 2)
mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "context"), axis_types=(AxisType.Auto,) * 3)
found = []
latents = normal(0, 24, 4, 4, 4)
one = quick_jit(decode)(params, latents)
for images in (24, 13):
    even = P(("data", "fsdp")) if images % 8 == 0 else P()
    with jax.set_mesh(mesh):
        places = NamedSharding(mesh, P()), NamedSharding(mesh, even)
        args = jax.device_put((params, latents[:images]), places)
        program = quick_jit(decode).lower(*args).compile()
    many = program(*args)
    moves = re.findall(r"(?:all-reduce|all-gather|all-to-all|collective-permute)\\(", program.as_text())
    cut = len({str(shard.index) for shard in many.addressable_shards})
    found.append({"gap": gap(many, one[:images]), "moves": len(moves), "cut": cut})
print(json.dumps(found))
"""


def test_eight_devices_decode_as_one_without_a_word_between_them() -> None:
    """Three latents on each device by two; thirteen in all are filled up to sixteen."""
    run = subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    even, odd = json.loads(run.stdout.splitlines()[-1])
    assert even["gap"] < 1e-5
    assert (even["moves"], even["cut"]) == (0, 8)
    assert odd["gap"] < 1e-5
