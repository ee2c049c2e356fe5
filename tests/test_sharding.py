"""Where arrays live: one row of the table for each parameter, and any mesh computes what one device does."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from pom_jax import models
from pom_jax.data import moving_digits
from pom_jax.errors import InputError
from pom_jax.ops.mesh import MESH_AXES
from pom_jax.training import checkpoint, digest, metrics, sharding
from pom_jax.training.collectives import collectives, in_layers, total_bytes
from tests.layers import normal
from tests.mesh_agreement import BATCH, STEPS, awake

KINDS = [
    ("DiPoM-S/2", {}),
    ("DiPoM-R-B/4", {}),
    ("DiT-S/8", {}),
    ("DiPoM-S/2", {"form": "power", "gate_heads": 4}),
    ("DiPoM-S/2", {"form": "power", "groups": 2}),
    ("DiPoM-S/2", {"mixer": "hybrid", "window": 2, "form": "power", "gate_heads": 4}),
    ("DiPoM-S/2", {"attention_every": 3, "window": 2}),
    ("DiPoM-S/2", {"rotary": True, "phase_periods": (16.0, 4.0)}),
    (
        "Polymorpher-S/2",
        {"frame_causal": True, "reads": ("own", "past"), "positions": "learned", "past_frames": 2},
    ),
    ("Polymorpher-S/2", {"mixer": "hybrid", "attention_every": 3, "window": 2, "frame_causal": True}),
    ("TextVideoDiT-S/2", {"vocabulary": 32, "rotary": True}),
    ("Polymorpher-S/2", {"form": "power", "groups": 2, "vocabulary": 32, "pooled_text": True}),
]
IMAGES = {"image_size": 32, "channels": 4, "num_classes": 10}
CLIPS = {"frames": 6, "frame_height": 16, "frame_width": 20, "channels": 4}
TEXTS = {"text_length": 16, "text_width": 256}


def fields_of(preset: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration."""
    video = preset in models.VIDEO_NAMES
    return models.preset(preset) | (CLIPS | TEXTS | {"family": "polymorpher"} if video else IMAGES) | changes


def named_parameters(preset: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Shapes of the parameters by the names of the table."""
    model = models.build(fields_of(preset, changes))
    shapes = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
    names = sharding.parameter_names(shapes)
    return {names[digest.path_name(path)]: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


@pytest.mark.smoke
@pytest.mark.parametrize(("preset", "changes"), KINDS)
def test_each_parameter_has_exactly_one_row(preset: str, changes: dict[str, Any]) -> None:
    for name, leaf in named_parameters(preset, changes).items():
        rows = [axes for pattern, axes in sharding.PARAMETER_AXES if re.fullmatch(pattern, name)]
        assert len(rows) == 1, name
        axes = sharding.logical_axes(name, leaf.ndim)
        assert len(axes) == leaf.ndim, name
        assert (axes[0] == "layers") == name.startswith("blocks/")
        assert set(axes) - {None} <= MESH_AXES.keys()


@pytest.mark.parametrize(("preset", "changes"), KINDS[:4] + KINDS[-3:])
def test_nearly_all_memory_is_cut_by_fsdp(preset: str, changes: dict[str, Any]) -> None:
    named = named_parameters(preset, changes)
    cut = sum(leaf.size for name, leaf in named.items() if "embed" in sharding.logical_axes(name, leaf.ndim))
    assert cut > 0.99 * sum(leaf.size for leaf in named.values())


def test_blocks_are_cut_by_tensor_too() -> None:
    """Along E, hidden channels or heads; attention's output, which looks like PoM's, along its heads."""
    for preset, changes in (KINDS[0], KINDS[2], KINDS[5], *KINDS[-3:]):
        for name, leaf in named_parameters(preset, changes).items():
            if re.search(r"(mixer|feed_forward)/.*kernel", name):
                axes = sharding.logical_axes(name, leaf.ndim)
                assert {"expand", "hidden", "heads"} & set(axes), name
                assert ("heads" in axes) == ("mixer/attention" in name), name


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(InputError, match="blocks/mixer/rotation"):
        sharding.logical_axes("blocks/mixer/rotation", 2)


@pytest.mark.smoke
@pytest.mark.parametrize("sizes", [{"data": 3, "fsdp": 7}, {"data": -1, "fsdp": -1}, {"data": 0, "fsdp": 1}])
def test_meshes_that_do_not_fit_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"mesh.data={sizes['data']}, mesh.fsdp={sizes['fsdp']}"):
        sharding.make_mesh(sizes)


def test_batches_that_do_not_divide_are_refused() -> None:
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1})
    sharding.check_batch(12 * mesh.size, 3, mesh)
    with pytest.raises(InputError, match=r"data.batch_size=13 must be a positive multiple of"):
        sharding.check_batch(13, 3, mesh)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("sizes", "changes", "said"),
    [
        ({"fsdp": 5}, {}, r"mesh.fsdp=5 does not divide model.width = 384"),
        ({"tensor": 5}, {}, r"mesh.tensor=5 does not divide model.ffn_expansion \* model.width = 1152"),
        ({"tensor": 3}, {"mixer": "pom", "width": 8, "ffn_expansion": 3}, r"expansion \* model.width = 16"),
        ({"tensor": 4}, {"mixer": "attention"}, r"mesh.tensor=4 does not divide model.num_heads = 6"),
        ({"context": 8}, {"registers": 4}, r"256 patches and model.registers=4 = 260"),
    ],
)
def test_models_that_do_not_divide_are_refused(
    sizes: dict[str, int], changes: dict[str, Any], said: str
) -> None:
    mesh = AbstractMesh(tuple(sizes.get(name, 1) for name in sharding.AXES), sharding.AXES)
    with pytest.raises(InputError, match=said):
        sharding.check_model(models.build(fields_of("DiPoM-S/2", changes)), mesh)


def test_the_tokens_of_a_clip_must_divide() -> None:
    fields = fields_of("Polymorpher-S/2", {})  # 3 x 8 x 10 tokens
    for context, fits in ((16, True), (32, False)):
        mesh = AbstractMesh((1, 1, context, 1), sharding.AXES)
        for model in (models.build(fields), ConfigDict(fields)):
            if fits:
                sharding.check_model(model, mesh)
                continue
            with pytest.raises(InputError, match=r"mesh.context=32 does not divide the tokens, .* = 240"):
                sharding.check_model(model, mesh)


def in_process(*command: str) -> subprocess.Popen[str]:
    """A program with eight virtual devices, that compiles in half the time."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said_last(process: subprocess.Popen[str]) -> Any:
    """What a program printed, and the JSON of its last line."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    print(output)
    return json.loads(output.splitlines()[-1])


def test_image_and_video_models_train_alike_on_every_mesh(digits_dir: Path, tmp_path: Path) -> None:
    """Twenty steps on eight devices are those on one, and tokens that are cut are not sent."""
    moving_digits.prepare(tmp_path / "moving", clips=STEPS * BATCH)
    folders = {"image": digits_dir, "video": tmp_path / "moving"}
    running = [in_process("-m", "tests.mesh_agreement", str(at), kind) for kind, at in folders.items()]
    sums = {"image": 3, "video": 5}
    for kind, process in zip(folders, running, strict=True):
        rows = said_last(process)
        assert len(rows) == 7
        for row in rows:
            assert row["losses, SGD"] < 2e-5, row
            assert row["losses, AdamW"] < 2e-5, row
            assert row["parameters, SGD"] < 2e-5, row
            assert row["falls to"] < 0.5, "the parameters have moved"
        layer = {row["mesh"]: row["collectives of a layer"] for row in rows}
        assert layer["1"] == ""
        # Forwards the states, backwards their slopes (of clips, of what frames read of a text too), and those
        # of the parameters.
        assert layer["context 8"] == f"{sums[kind]} all-reduce"
        # Parameters come twice, and their slopes go once: no tokens.
        size = {row["mesh"]: row["KiB"] for row in rows}
        assert size["fsdp 8"] <= 3 * size["data 8"]


KINDS_RUN = {
    "registers": {"registers": 8, "positions": "learned", "clamp": 255.0, "remat": "full"},
    "attention": {"mixer": "attention", "remat": "dots"},
    "hybrid": {"mixer": "hybrid", "window": 1, "form": "power", "gate_heads": 4, "registers": 8},
    "phase": {"rotary": True, "phase_periods": (4.0,), "scan": False},
    "groups": {"form": "power", "groups": 2, "attention_every": 2, "window": 2},
}


def run_kinds() -> None:
    """Prints, for each kind of model, how far fsdp 2 x context 2 x tensor 2 is from one device."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "context": 2, "tensor": 2})
    sizes = {"image_size": 8, "channels": 2, "num_classes": 3, "patch_size": 1, "width": 16, "depth": 2}
    inputs = normal(1, 4, 8, 8, 2), np.linspace(0, 1, 4, dtype=np.float32), np.arange(4) % 3
    found = {}
    for name, fields in KINDS_RUN.items():
        model = models.build(sizes | {"ffn_expansion": 1, "num_heads": 2} | fields)
        sharding.check_model(model, mesh)
        params = awake(model, inputs)

        def slopes(params: Any, *inputs: Any, model: Any = model) -> Any:
            return jax.grad(lambda p: (model.apply({"params": p}, *inputs) ** 2).mean())(params)

        one = jax.device_get(jax.jit(slopes)(params, *inputs))
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, sharding.parameter_shardings(params, mesh))
            many = jax.device_get(jax.jit(slopes)(placed, *inputs))
        # Of attention's key biases the slope is zero, and what is found there rounding.
        pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True))
        least = 1e-2 * max(np.abs(a).max() for a, _ in pairs)
        found[name] = max(float(np.abs(a - b).max() / max(np.abs(a).max(), least)) for a, b in pairs)
    print(json.dumps(found))


def test_every_kind_of_model_runs_on_a_mesh_of_all_axes() -> None:
    found = said_last(in_process("-c", "from tests.test_sharding import run_kinds; run_kinds()"))
    assert len(found) == len(KINDS_RUN)
    assert all(gap < 1e-5 for gap in found.values()), found


SLICES = """
import json, jax
from pom_jax.errors import InputError
from pom_jax.training.sharding import make_mesh
def ids(**sizes):
    try:
        return [[d.id for d in row.flat] for row in make_mesh(sizes).devices]
    except InputError as error:
        return str(error)
print(json.dumps([ids(data=-1, context=2, slices=2), ids(data=1, fsdp=8, slices=2), ids(data=8, slices=3)]))
"""


def test_data_is_cut_over_slices_first() -> None:
    laid, too_few, uneven = said_last(in_process("-c", SLICES))
    assert laid == [[0, 1], [2, 3], [4, 5], [6, 7]]  # the first slice is devices 0 to 3
    assert "mesh.data=1 is not a multiple of the 2 slices" in too_few
    assert "mesh.slices=3 does not divide 8 devices" in uneven


PROCESS = """
import sys
import jax
import jax.numpy as jnp
address, number, folder, workdir = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(number))
from configs import digits as recipe
from pom_jax.sampling import write
from pom_jax.training import loop
config = recipe.get_config("quick")
config.model.update({"width": 8, "depth": 1, "ffn_expansion": 1})
config.data.update({"dir": folder, "batch_size": 8})
config.mesh.update({"data": 1, "context": 2})
config.train.update({"steps": 4, "eval_every": 2, "eval_size": 8, "sample_every": 4, "checkpoint_every": 2})
config.sampling.update({"steps": 1, "num": 2, "sampler": "euler"})
sys.exit(loop.train(config, workdir, write))
"""


def test_two_processes_that_share_the_tokens_write_one_run(tmp_path: Path, digits_dir: Path) -> None:
    """Both read the same records, and each has half of their tokens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    workdir = tmp_path / "run"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(number), str(digits_dir), str(workdir)],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert "trained steps 1 to 4" in said[0][0]
    assert "step" not in said[1][0], "one of them speaks"
    assert [row["step"] for row in metrics.read_rows(workdir)] == [1, 2, 3, 4]
    assert (workdir / "log.txt").read_text().count("step 4/4") == 1
    assert checkpoint.saved_steps(workdir) == [2, 4]
    assert [path.name for path in (workdir / "samples").iterdir()] == ["step_0000004.png"]


# Fields, frames, drafts and rows of tokens; ten and twelve frames do not line up with eight devices.
CLIPS_RUN: dict[str, tuple[dict[str, Any], int, int, tuple[int, ...]]] = {
    "hybrid": ({"mixer": "hybrid", "attention_every": 2, "window": 1, "num_heads": 2}, 4, 0, (4,)),
    "own and past": ({"reads": ("own", "past"), "rotary": True, "expansion": 3}, 4, 0, (4, 8)),
    "ten frames": ({"expansion": 1}, 10, 0, (4, 8)),
    "two drafts": ({"expansion": 1, "reads": ("own", "last")}, 4, 2, (4, 8)),
}


def run_clips() -> None:
    """Prints how far block-causal models for video on 8 devices are from one, and what these send."""
    fields = {"family": "polymorpher", "channels": 2, "text_length": 3, "text_width": 8, "patch_size": 1}
    fields |= {"width": 16, "depth": 2, "ffn_expansion": 1, "frame_causal": True, "frame_width": 4}
    mesh = sharding.make_mesh({"data": 1, "context": 8})
    gaps: dict[str, float] = {}
    sent: dict[str, list[tuple[float, float]]] = {name: [] for name in CLIPS_RUN}
    for name, (kind, frames, drafts, heights) in CLIPS_RUN.items():
        for height in heights:
            model = models.build(fields | kind | {"frames": frames, "frame_height": height})
            sharding.check_model(model, mesh)
            params, total = awake(model, models.dummy_inputs(model)), (1 + drafts) * frames
            x, text = normal(1, 2, total, height, 4, 2), models.Text(normal(2, 2, 3, 8), jnp.eye(2, 3))
            t = np.linspace(0, 1, 2 * total, dtype=np.float32).reshape(2, total)

            def loss(params: Any, *inputs: Any, model: Any = model, drafts: int = drafts) -> jax.Array:
                return (model.apply({"params": params}, *inputs, drafts=drafts) ** 2).mean()

            slopes = jax.value_and_grad(loss)
            with jax.set_mesh(mesh):
                placed = jax.device_put(params, sharding.parameter_shardings(params, mesh))
                compiled: Any = jax.jit(slopes).lower(placed, x, t, text).compile()
            found = collectives(compiled.as_text())
            layer = sum(size for _, size in in_layers(found, 2).values())
            sent[name].append((layer, total_bytes(found) - 2 * layer))
            if height > heights[0]:
                continue
            one, many = jax.device_get((jax.jit(slopes)(params, x, t, text), compiled(placed, x, t, text)))
            pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True))
            # Of attention's key biases the slope is zero, and what is found there rounding.
            least = 1e-2 * max(np.abs(a).max() for a, _ in pairs) if name == "hybrid" else 0.0
            gaps[name] = max(float(np.abs(a - b).max() / max(np.abs(a).max(), least)) for a, b in pairs)
    print(json.dumps({"gaps": gaps, "sent": sent}))


def test_clips_are_cut_over_devices_and_no_token_is_sent() -> None:
    """Losses and slopes are those of one device, and for twice the tokens a layer sends not a byte more.

    Nor does the rest, but for what is predicted, where the parts of the devices are no whole frames or rows.
    Hybrids compute the same, too; their windows send keys and values.
    """
    found = said_last(in_process("-c", "from tests.test_sharding import run_clips; run_clips()"))
    assert found["gaps"].keys() == CLIPS_RUN.keys()
    assert max(found["gaps"].values()) < 1e-5, found
    for name, (_, frames, drafts, heights) in CLIPS_RUN.items():
        if len(heights) == 1:
            continue
        (layer, rest), (larger_layer, larger_rest) = found["sent"][name]
        assert larger_layer == layer > 0, name
        total = (1 + drafts) * frames
        predicted = 2 * total * (heights[1] - heights[0]) * 4 * 2 * 4  # clips, columns, channels, bytes
        assert larger_rest - rest <= (predicted if total % 8 and 8 % total else 0), name
