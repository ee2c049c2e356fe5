"""What cannot work is refused in words before anything is compiled or written: the training side."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits as recipe
from pom_jax.data import Field, Writer, digits
from pom_jax.errors import InputError, parse_flags
from pom_jax.training import loop
from pom_jax.training.config import keep_config
from pom_jax.training.workdir import FILE, check_seen, hold

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits"
    digits.prepare(path)
    return path


def tiny(folder: Path, changes: dict[str, Any] | None = None) -> ConfigDict:
    config = recipe.get_config()
    config.model.update({"width": 8, "depth": 1})
    config.data.dir = str(folder)
    config.update_from_flattened_dict(changes or {})
    return config


def train(config: ConfigDict, workdir: Path) -> int:
    return loop.train(config, workdir, lambda *_: None)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../else"}, "name='../else' must be"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"dtype": "float16"}, "dtype = 'float16'"),
        ({"model.width": 6}, "model.width=6 must be a multiple of 4"),
        ({"model.image_size": 9}, "model.image_size=9 is not a multiple of model.patch_size=2"),
        ({"model.image_size": 16}, r"\(16, 16, 1\)"),
        ({"model.num_classes": 7}, "num_classes"),
        ({"model.remat": "some"}, "remat"),
        ({"data.source": "shard"}, "source"),
        ({"data.dir": "/nowhere/at/all"}, "/nowhere/at/all does not exist"),
        ({"data.batch_size": 0}, "data.batch_size=0"),
        (
            {"data.batch_size": 10, "optimizer.accumulate": 4},
            "data.batch_size=10 must be a positive multiple",
        ),
        ({"diffusion.path": "flown"}, "flown"),
        ({"diffusion.prediction": "v"}, "prediction"),
        ({"diffusion.time_sampling": "normal"}, "normal"),
        ({"diffusion.shift": 0.0}, "shift"),
        ({"diffusion.label_dropout": 1.0}, "diffusion.label_dropout=1.0 must be in"),
        ({"optimizer.name": "adam"}, "optimizer.name = 'adam' .*adamw"),
        ({"optimizer.schedule": "cos"}, "optimizer.schedule = 'cos'"),
        ({"optimizer.learning_rate": 0.0}, "optimizer.learning_rate=0.0 must be positive"),
        ({"optimizer.learning_rate": math.inf}, "optimizer.learning_rate=inf must be positive"),
        ({"optimizer.b2": 1.0, "optimizer.eps": 0.0}, "optimizer.b2=1.0 .*; optimizer.eps=0.0 "),
        ({"ema.decays": ()}, r"ema.decays=\(\) must be one or more"),
        ({"ema.decays": (0.9, 1.0)}, r"ema.decays=\(0.9, 1.0\)"),
        ({"ema.decays": ("abc",)}, r"ema.decays=\('abc',\)"),
        ({"train.steps": 0}, "train.steps=0 must be at least 1"),
        ({"train.keep_last": 0}, "train.keep_last=0 must be at least 1"),
        ({"sampling.sampler": "huen"}, "huen.*heun"),
        ({"sampling.steps": 0}, "steps"),
        ({"sampling.guidance": -1.0}, "guidance"),
        ({"sampling.guidance_interval": (0.9, 0.1)}, r"sampling\.guidance_interval=\(0\.9, 0\.1\) must be"),
        ({"fid.guidance_interval": ("a", "b")}, r"fid\.guidance_interval=\('a', 'b'\) must be"),
        ({"log.wandb": True}, "log.wandb=True needs the package wandb: pip install wandb"),
        ({"mesh.data": 3, "mesh.fsdp": 5}, r"mesh.data=3, mesh.fsdp=5, .* does not fit"),
        ({"train.keep_last": 10**8}, r"needs .* GB, but the disk of .* has"),
        ({"model.width": 2**20, "model.depth": 1000}, r"needs .* GiB of each device, which has .* too much"),
    ],
)
def test_wrong_fields_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if "log.wandb" in changes and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(InputError, match=message):
        train(tiny(folder, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_config_is_left_alone(folder: Path, tmp_path: Path) -> None:
    keep_config(tmp_path, tiny(folder))
    before = (tmp_path / "config.json").read_text()
    changes = {"optimizer.learning_rate": 0.5, "model.width": 16, "train.steps": 7, "model.scan": False}
    with pytest.raises(
        InputError, match=r"another configuration(.|\n)*model.width: 8 there, 16 now"
    ) as raised:
        train(tiny(folder, changes), tmp_path)
    assert "optimizer.learning_rate: 0.005 there, 0.5 now" in str(raised.value)
    assert "train.steps" not in str(raised.value), "how long a run is may change"
    assert "model.scan" not in str(raised.value)
    assert (tmp_path / "config.json").read_text() == before


def test_what_may_change_is_accepted_and_kept(folder: Path, tmp_path: Path) -> None:
    keep_config(tmp_path, tiny(folder))
    keep_config(tmp_path, tiny(folder, {"train.steps": 9_000, "sampling.guidance": 2.0}))
    assert '"steps": 9000' in (tmp_path / "config.json").read_text()


def test_a_run_does_not_go_on_with_other_data(folder: Path, tmp_path: Path) -> None:
    keep_config(tmp_path, tiny(folder), "0123456789abcdef")
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(
        InputError, match=r"is not what .* has learned from so far \(checksum 0123456789abcdef"
    ):
        train(tiny(folder), tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_a_run_is_not_made_shorter_than_it_is(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, {"train.steps": 9})
    keep_config(tmp_path, config)
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    with pytest.raises(InputError, match=r"is at step 12 already, past train.steps=9"):
        train(config, tmp_path)


def test_a_folder_that_is_no_workdir_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(InputError, match="not empty and not a workdir"):
        train(tiny(folder), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_workdir_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hold(run), pytest.raises(InputError, match=r"another train.py is at work"), hold(run):
        pass
    with hold(run):
        pass


def test_processes_find_out_whether_they_see_one_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"do not see the same workdir .*that all hosts share"):
        check_seen(tmp_path, "0123", patience=0)
    (tmp_path / FILE).write_text("4567")  # of a start that was killed meanwhile
    with pytest.raises(InputError, match="do not see the same workdir"):
        check_seen(tmp_path, "0123", patience=0.2)
    check_seen(tmp_path, "4567")


def test_a_workdir_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear reader")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be made"), hold(place):
            pass


@pytest.mark.parametrize("content", ["", "{half", "[]", "{}", '{"model": {"width": 8}}'])
def test_a_damaged_config_is_said(folder: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config.json cannot be read"):
        train(tiny(folder), tmp_path)


def test_data_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    """Values that overflow on the device: every step is skipped, and the run says so."""
    fields = {"mean": Field("float32", (1, 8, 8, 1)), "label": Field("int32", ())}
    classes = [str(label) for label in range(10)]
    with Writer(
        tmp_path / "data", name="huge", fields=fields, classes=classes, scale=1.0, shift=0.0
    ) as writer:
        for split in ("train", "test"):
            mean = np.full((64, 1, 8, 8, 1), 1e30, np.float32)
            writer.write(split, {"mean": mean, "label": np.zeros(64, np.int32)})
    config = tiny(tmp_path / "data", {"train.max_skipped": 3, "train.sample_every": 0, "train.eval_every": 0})
    with pytest.raises(InputError, match=r"not finite in 3 steps in a row, up to step 3.*NaN in the data"):
        train(config, tmp_path / "run")
    assert "held-out loss" not in (tmp_path / "run" / "log.txt").read_text(), "none is asked for"


@pytest.mark.parametrize(
    ("ending", "code", "message"),
    [
        ("InputError('wrong field')", 2, "error: wrong field\n"),
        ("OSError(28, 'No space left on device')", 2, "error: [Errno 28] No space left on device\n"),
        ("KeyboardInterrupt()", 130, "stopped\n"),
    ],
)
def test_commands_end_with_one_message(ending: str, code: int, message: str) -> None:
    program = f"from pom_jax.errors import *\ndef main(_): raise {ending}\nrun_command(main)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (code, message)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("optimizer.lr", "did you mean --config.optimizer.learning_rate?"),
        ("optimizer.learnign_rate", "did you mean --config.optimizer.learning_rate?"),
        ("train.batch_size", "did you mean --config.data.batch_size or --config.fid.batch_size?"),
        ("steps", "did you mean --config.fid.steps or --config.sampling.steps or --config.train.steps?"),
        ("train.epochs", "config.train has absurd, checkpoint_every, eval_every,"),
        ("nothing.at_all", "configs/common.py lists all fields"),
    ],
)
def test_an_unknown_field_names_the_one_that_is_meant(wrong: str, hint: str) -> None:
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--config.{wrong}=1"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: --config.{wrong}: there is no such field; {hint}")


def test_a_missing_recipe_is_asked_for_and_help_names_them_all() -> None:
    found = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, cwd=ROOT)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "error: which recipe? Give --config=configs/digits.py (configs/ has the others)\n"
    found = subprocess.run([sys.executable, "train.py", "--help"], capture_output=True, text=True, cwd=ROOT)
    recipes = {path.name for path in (ROOT / "configs").glob("*.py")} - {"__init__.py"}
    assert {name for name in recipes if name not in found.stdout} == set()


def test_a_wrong_flag_of_any_command_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"'nothing'; python sample.py --help lists the flags"):
        parse_flags(["sample.py", "--nothing"])
