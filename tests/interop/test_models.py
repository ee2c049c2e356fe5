"""Files that torch wrote: DiT and SiT against a small DiT in torch, and Lightning's kind."""

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pom_jax import interop
from pom_jax.errors import InputError
from pom_jax.evaluation.inception_weights import load_inception
from pom_jax.interop import model_layouts
from tests.official_models import MODELS, same_bits, theirs, told

torch = pytest.importorskip("torch")
D, HEADS, PATCH, CHANNELS = 8, 2, 2, 2


def dit(p: dict[str, Any], x: Any, t: Any, labels: Any) -> Any:
    """DiT (Peebles and Xie 2023, figure 3) of a state dict: x [B, C, H, W], t as the network sees it."""
    F = torch.nn.functional

    def linear(name: str, x: Any) -> Any:
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def modulated(x: Any, shift: Any, scale: Any) -> Any:
        return F.layer_norm(x, (D,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    angles = t[:, None] * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128).float()
    time = torch.cat([angles.cos(), angles.sin()], 1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", time)))
    c = F.silu(c + p["y_embedder.embedding_table.weight"][labels])
    h = F.conv2d(x, p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], stride=PATCH)
    side = h.shape[-1]
    h = h.flatten(2).mT + p["pos_embed"]
    for i in range(2):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"blocks.{i}.adaLN_modulation.1", c).chunk(6, 1)
        qkv = linear(f"blocks.{i}.attn.qkv", modulated(h, shift1, scale1))
        q, k, v = qkv.unflatten(-1, (3, HEADS, D // HEADS)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + gate1[:, None] * linear(f"blocks.{i}.attn.proj", mixed)
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", modulated(h, shift2, scale2)), approximate="tanh")
        h = h + gate2[:, None] * linear(f"blocks.{i}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, 1)
    y = linear("final_layer.linear", modulated(h, shift, scale))
    y = y.unflatten(-1, (PATCH, PATCH, -1)).unflatten(1, (side, side))  # [B, h, w, p, q, C]
    return y.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


@pytest.mark.parametrize("layout", ["dit", "sit"])
def test_a_saved_dit_computes_the_same_here(layout: str, tmp_path: Path) -> None:
    online, ema = ({n: torch.tensor(a) for n, a in theirs(layout, seed=s).items()} for s in (1, 2))
    contents = {"model": online, "ema": ema, "opt": {"state": {}}, "args": argparse.Namespace(model="DiT")}
    torch.save(contents, tmp_path / "0000001.pt")
    found = interop.import_model(interop.read_tensors(tmp_path / "0000001.pt"), **told(layout))
    assert found.weights == "ema"
    x, t = torch.randn(2, CHANNELS, 4, 4), torch.tensor([0.25, 0.75])
    labels = torch.tensor([1, 3])
    # DiT sees 1,000 steps and predicts the noise; SiT's noise is at 0, and its velocity runs to the data.
    expected = dit(ema, x, 1000 * t, labels) if layout == "dit" else -dit(ema, x, 1 - t, labels)
    images, times = x.numpy().transpose(0, 2, 3, 1), t.numpy()
    ours = jax.jit(found.model.apply)(
        {"params": found.params}, images, times, labels.numpy().astype(np.int32)
    )
    ours = np.asarray(ours).transpose(0, 3, 1, 2)
    assert np.abs(ours - expected.numpy()).max() <= 2e-5 * expected.abs().max().item()


def test_a_lightning_checkpoint_gives_its_average_and_goes_back(tmp_path: Path) -> None:
    wrapped = theirs("dihpp", "model._orig_mod.") | theirs("dihpp", "ema.ema_model._orig_mod.", seed=1)
    state = {name: torch.tensor(array) for name, array in wrapped.items()} | {"ema.step": torch.tensor(3)}
    torch.save({"state_dict": state, "epoch": 1, "optimizer_states": [{"state": {}}]}, tmp_path / "last.ckpt")
    found = interop.import_model(interop.read_tensors(tmp_path / "last.ckpt"), **told("dihpp"))
    assert found.model.clone(dtype=None) == MODELS["dihpp"]
    file = tmp_path / "back.safetensors"
    interop.write_tensors(file, interop.export_model(found.model, found.params))
    load = pytest.importorskip("safetensors.torch").load_file
    same_bits({name: tensor.numpy() for name, tensor in load(file).items()}, theirs("dihpp", seed=1))


def test_gates_in_float64_load_in_torch_as_float32(tmp_path: Path) -> None:
    model = MODELS["dih"].clone(unit_gates=False)
    found = interop.import_model(theirs("dih"), **told("dih"))
    name = "layers.0.gate_mlp.1.bias"
    exported = interop.export_model(model, found.params)
    assert exported[name].dtype == np.float64
    layer = torch.nn.Linear(8, 16)
    weights = {"weight": exported["layers.0.gate_mlp.1.weight"], "bias": exported[name]}
    layer.load_state_dict({part: torch.tensor(array) for part, array in weights.items()})
    entries = model_layouts.entries("dih", model)
    assert any(isinstance(entry, model_layouts.LoweredEntry) for entry in entries)
    np.testing.assert_array_equal(layer.bias.detach().numpy(), exported[name].astype(np.float32))


class Anything:
    """Something of another program."""


def test_files_that_hold_more_than_tensors_are_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": Anything()}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"holds a \S*Anything besides tensors.*safetensors.torch.save_file"):
        interop.read_tensors(tmp_path / "last.ckpt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_told(zipped: bool, tmp_path: Path) -> None:
    buffer, file, rng = io.BytesIO(), tmp_path / "weights.pth", np.random.default_rng(0)
    tensors = {"a.weight": torch.randn(64, 64), "b": torch.zeros(3)}
    torch.save(tensors, buffer, _use_new_zipfile_serialization=zipped)
    whole = buffer.getvalue()
    for cut in np.linspace(0, len(whole) - 1, 30).astype(int):
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"weights.pth is no torch file .*download it again") as error:
            load_inception(file) if cut % 2 else interop.read_tensors(file)
        assert "weights_only" not in str(error.value), "no advice to load it unsafely"
    for place in [*rng.integers(600, size=40), *(len(whole) - 1 - rng.integers(600, size=40))]:
        data = bytearray(whole)
        data[place] = rng.integers(256)
        file.write_bytes(data)
        with contextlib.suppress(InputError):  # a letter of a name may change unseen
            interop.read_tensors(file)


def test_tensors_that_numpy_cannot_hold_are_told(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(InputError, match=r"sparse.pt is no torch file of .* alone: b is not read .*dense"):
        interop.read_tensors(tmp_path / "sparse.pt")
    torch.save({"a": torch.full((2,), 1.5).to(torch.float8_e4m3fn)}, tmp_path / "small.pt")
    np.testing.assert_array_equal(interop.read_tensors(tmp_path / "small.pt")["a"], [1.5, 1.5])
