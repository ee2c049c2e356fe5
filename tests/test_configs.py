"""Recipes: every field is read, wrong variants and overrides are explained, sizes are those promised."""

import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import common
from pom_jax import models
from pom_jax.data import digits
from pom_jax.diffusion.paths import make_path
from pom_jax.errors import InputError
from pom_jax.models.resample import compare
from pom_jax.training import checkpoint, config, loop
from pom_jax.training.command import parse_flags

RECIPES = sorted(path.stem for path in Path(common.__file__).parent.glob("*.py") if path.stem[0] != "_")
RECIPES.remove("common")
DIGITS = Path(common.__file__).with_name("digits.py")
COMMON_TEXT = Path(common.__file__).read_text()


class Recording(ConfigDict):
    """A config that notes which of its fields are read."""

    def __init__(self, fields: dict[str, Any], prefix: str, read: set[str]):
        object.__setattr__(self, "_prefix", prefix)
        object.__setattr__(self, "_read", read)
        nested = {
            name: Recording(value, f"{prefix}{name}.", read) if isinstance(value, dict) else value
            for name, value in fields.items()
        }
        super().__init__(nested, convert_dict=False)

    def __getitem__(self, key: str) -> Any:
        self._read.add(self._prefix + key)
        return super().__getitem__(key)

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Keeping a copy in the workdir is not reading."""
        before = set(self._read)
        fields = super().to_dict(*args, **kwargs)
        self._read.intersection_update(before)
        return fields


def leaves(fields: dict[str, Any], prefix: str = "") -> set[str]:
    names = set()
    for name, value in fields.items():
        names |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return names


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    digits.prepare(folder)
    return folder


def docstring(recipe: str) -> str:
    return importlib.import_module(f"configs.{recipe}").__doc__ or ""


def load(recipe: str, variant: str | None = None) -> ConfigDict:
    return importlib.import_module(f"configs.{recipe}").get_config(variant)


def test_every_field_is_read(digits_folder: Path, tmp_path: Path) -> None:
    plain = load("digits", "quick")
    plain.model.update({"width": 8, "depth": 1})
    plain.data.update({"dir": str(digits_folder), "batch_size": 8})
    plain.train.update({"steps": 2, "eval_size": 8})
    plain.sampling.update({"steps": 1, "num": 2})
    plain.log.tensorboard = True
    read: set[str] = set()
    loop.train(Recording(plain.to_dict(), "", read), tmp_path / "run", lambda *_: None)
    config.default_workdir(Recording(plain.to_dict(), "", read))
    plain.diffusion.path = "variance"
    make_path(Recording(plain.to_dict(), "", read).diffusion)
    assert leaves(plain.to_dict()) - read == set()


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_build_and_say_how_to_run_them(recipe: str) -> None:
    made = load(recipe)
    config.check_config(made)
    models.build(made.model, made.dtype)
    assert made.name == recipe
    text = docstring(recipe)
    assert f"python train.py --config=configs/{recipe}.py" in text
    assert re.search(r"[Ee]xpected result", text), "the docstring says what to expect, or that it is unknown"


def test_every_field_has_its_place_in_common() -> None:
    for name in leaves(common.base().to_dict()):
        last = name.split(".")[-1]
        presets = models.preset("DiPoM-S/2")
        assert f'"{last}"' in COMMON_TEXT or f"config.{last}" in COMMON_TEXT or last in presets, name


@pytest.mark.smoke
def test_digits_variants_differ_in_their_mixer_only() -> None:
    default, power, *others = (load("digits", v) for v in (None, "power", "attention", "hybrid"))
    for other in (power, *others):
        changed = {line.split(":")[0] for line in config.differences(default, other)}
        allowed = {"mixer", "form", "degree", "expansion", "window", "ffn_expansion"}
        assert changed <= {"name"} | {f"model.{field}" for field in allowed}
    assert load("digits", "power,quick").model == power.model
    assert load("digits", "power,quick").name == "digits_power_quick"


def test_a_run_older_than_a_field_of_the_model_goes_on_with_its_default() -> None:
    older, now = load("digits"), load("digits")
    with older.unlocked():
        del older.model["window"], older.model["phase_periods"]
    assert config.differences(older, now) == []
    films, film = load("video_s2"), load("video_s2")
    with films.unlocked():
        del films.model["pooled_text"], films.diffusion["drafts"]
        del films.diffusion["film_every"], films.diffusion["still_frames"]
        films.diffusion.stills = 0
    assert config.differences(films, film) == []
    films.diffusion.stills = 3
    assert config.differences(films, film) == ["diffusion.stills: 3 there, 0 now"]
    now.model.window = 2
    assert config.differences(older, now) == ["model.window: 0 there, 2 now"]


def test_digits_variants_have_nearly_the_same_size() -> None:
    sizes = [
        models.count_parameters(models.build(load("digits", v).model))
        for v in ("pom", "power", "attention", "hybrid")
    ]
    assert max(sizes) < 1.05 * min(sizes)


@pytest.mark.parametrize(
    ("recipe", "variant"), [("digits", "pwoer"), ("digits", "pom,power"), ("dipom_s2", "big")]
)
def test_unknown_variants_are_refused(recipe: str, variant: str) -> None:
    with pytest.raises(InputError, match=f"{variant}"):
        load(recipe, variant)


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ConfigDict]]:
    """What train.py does with its command line."""
    values = flags.FLAGS
    holder = config_flags.DEFINE_config_file("config", None, "recipe", flag_values=values)

    def parse_arguments(*arguments: str) -> ConfigDict:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])  # where ml_collections looks for overrides
        parse_flags(sys.argv)
        return holder.value

    yield parse_arguments
    for name in [name for name in values if name == "config" or name.startswith("config.")]:
        delattr(values, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optimizer.learning_rat=1"], "did you mean --config.optimizer.learning_rate"),
        (["--config.optimiser.learning_rate=1"], "did you mean --config.optimizer.learning_rate"),
        (["--config.train.steps=many"], "train.steps=many"),
        (["--config.train.steps=1.5"], "train.steps=1.5"),
        (["--confg=x"], "confg"),
        (["--config=other.py"], "--config is given 2 times"),
    ],
)
def test_wrong_overrides_are_explained(parse: Callable, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(f"--config={DIGITS}", *arguments)


@pytest.mark.parametrize(
    ("recipe", "message"), [("none.py", "no such file"), (f"{DIGITS}:none", "has no variant 'none'")]
)
def test_wrong_recipes_are_explained(parse: Callable, recipe: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(f"--config={recipe}")


def test_no_recipe_is_explained(parse: Callable) -> None:
    with pytest.raises(InputError, match=r"Give --config=configs/digits.py"):
        parse("--config.train.steps=3")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("def get_config(:", "line 1: SyntaxError"),
        ("def get_config():\n    return 3", "its get_config returns 3"),
        (
            "from configs import common\n\ndef get_config():\n    common.base().train.stepz = 3",
            'line 4: .*Did you mean "steps"',
        ),
    ],
)
def test_recipes_that_fail_are_explained(parse: Callable, tmp_path: Path, program: str, message: str) -> None:
    (tmp_path / "recipe.py").write_text(program)
    with pytest.raises(InputError, match=message):
        parse(f"--config={tmp_path / 'recipe.py'}")


def test_good_overrides_arrive(parse: Callable) -> None:
    found = parse(f"--config={DIGITS}:power", "--config.ema.decays=(0.9,0.99)", "--config.seed=3")
    assert found.ema.decays == (0.9, 0.99)
    assert found.seed == 3
    assert found.model.form == "power"


def test_a_kept_config_comes_back_the_same(tmp_path: Path) -> None:
    made = load("dipom_s2")
    (tmp_path / ".config.json.new").write_text('{"na')  # where a process was killed
    config.keep_config(tmp_path, made)
    assert checkpoint.load_config(tmp_path).to_dict() == made.to_dict()
    made.data.dir = "data/set"
    config.keep_config(tmp_path, made)
    assert checkpoint.load_config(tmp_path).data.dir == f"{Path.cwd()}/data/set", "found from elsewhere"


@pytest.mark.parametrize(
    "names", [("dipom_xl2", "dipom_xl2_512", "dipom_xl2_1024"), ("dit_xl2", "dit_xl2_512")]
)
def test_higher_resolutions_have_their_latents_shift_and_guidance(names: tuple[str, ...]) -> None:
    found = [load(name) for name in names]
    assert [made.model.image_size for made in found] == [32, 64, 128][: len(names)]
    np.testing.assert_allclose([made.diffusion.shift for made in found], [1, 2**0.5, 2][: len(names)])
    assert [made.sampling.guidance for made in found] == [5, 9, 17][: len(names)]
    for coarse, fine in itertools.pairwise(found):
        shapes = [
            jax.eval_shape(partial(models.init, models.build(m.model)), jax.random.key(0))
            for m in (coarse, fine)
        ]
        assert compare(*shapes) == ([], [])


@pytest.mark.parametrize("dit", [name for name in RECIPES if name.startswith("dit_")])
def test_recipes_of_dit_are_those_of_dipom_with_attention(dit: str) -> None:
    changed = {
        line.split(":")[0] for line in config.differences(load(dit.replace("dit_", "dipom_")), load(dit))
    }
    assert changed == {"name", "model.mixer", "model.ffn_expansion"}


def test_sizes_promised_in_the_recipes_are_those_of_the_models() -> None:
    for recipe in (name for name in RECIPES if name != "digits"):
        made = load(recipe)
        promised = re.search(r"Cost: ([\d.]+) million", docstring(recipe))
        assert promised is not None
        count = models.count_parameters(models.build(made.model))
        assert abs(float(promised[1]) - count / 1e6) < 0.05
