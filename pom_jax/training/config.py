"""The configuration of a run: checked before anything starts, kept in the workdir, compared on resume."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pom_jax import models, remote
from pom_jax.diffusion.guidance import is_interval
from pom_jax.diffusion.samplers import SAMPLERS
from pom_jax.errors import InputError
from pom_jax.files import names_in, write_whole

FILE = "config.json"
SECTIONS = ("model", "data", "diffusion", "optimizer", "ema", "train", "sampling", "mesh", "log")
MOST_SAMPLES = 10_000  # in a grid drawn during training
FEW = 16  # held-out images

# What may change when a run is resumed: how long, how often, where and how fast, but not what is trained.
CHANGEABLE = (
    "train.", "log.", "mesh.", "sampling.", "fid.", "model.scan", "model.remat", "data.dir",
    "data.memory_gb",
    "optimizer.offload", "ema.offload",
    "data.digest",  # compared by keep_config
    "data.words", "data.encoding",  # of the data set
)  # fmt: skip

# Fields of the training sections that runs older than them lack, and what they stood at.
ADDED = {"init_from": "", "init_step": -1, "init_ema": 0, "init_state": False, "optimizer.decay_from": 0}
ADDED |= {"init_new_classes": False}
ADDED |= {"optimizer.moments": "float32", "model.family": "dipom", "diffusion.frame_times": "shared"}
ADDED |= {"diffusion.given_frames": 0, "diffusion.drafts": 0}
ADDED |= {"diffusion.film_every": 1, "diffusion.still_frames": 0}
ADDED |= {"diffusion.stills": 0}  # no longer there: a run that had some cannot go on


def check_config(config: ConfigDict) -> None:
    """Raises InputError for values of the training sections that cannot be; the other rooms check theirs."""
    optimizer, train, ema, fid = config.optimizer, config.train, config.ema, config.fid
    latents = config.model.channels not in (1, 3)
    images = models.family(config.model) is models.DiPoM
    own_classes = images and config.init_from and not config.init_state
    decays = [d if isinstance(d, int | float) else math.nan for d in ema.decays]  # --config cannot tell
    rules = [
        ("name", re.fullmatch(r"[\w.+-]*\w[\w.+-]*", config.name), "letters, digits and ._+- (a folder)"),
        ("seed", 0 <= config.seed < 2**32, "a whole number from 0 to 2^32 - 1"),
        ("init_step", config.init_step >= -1, "a step, or -1 for the newest checkpoint"),
        ("init_ema", config.init_ema >= -1, "the number of an average, or -1 for the parameters"),
        ("init_state", config.init_from or not config.init_state, "False where init_from names no run"),
        (
            "init_new_classes",
            own_classes or not config.init_new_classes,
            "False unless init_from names a run of images and init_state is False",
        ),
        ("data.memory_gb", 0 <= config.data.memory_gb < math.inf, "at least 0"),
        ("diffusion.label_dropout", 0 <= config.diffusion.label_dropout < 1, "in [0, 1)"),
        ("optimizer.learning_rate", 0 < optimizer.learning_rate < math.inf, "positive"),
        ("optimizer.warmup_steps", optimizer.warmup_steps >= 0, "at least 0"),
        ("optimizer.decay_from", 0 <= optimizer.decay_from < train.steps, "at least 0, below train.steps"),
        ("optimizer.b1", 0 <= optimizer.b1 < 1, "in [0, 1)"),
        ("optimizer.b2", 0 <= optimizer.b2 < 1, "in [0, 1)"),
        ("optimizer.eps", 0 < optimizer.eps < math.inf, "positive"),
        ("optimizer.weight_decay", 0 <= optimizer.weight_decay < math.inf, "at least 0"),
        ("optimizer.clip_norm", optimizer.clip_norm >= 0, "at least 0 (0 = off)"),
        ("ema.decays", len(decays) >= 1 and all(0 <= d < 1 for d in decays), "one or more in [0, 1)"),
        ("ema.start", ema.start >= 0, "at least 0"),
        ("ema.every", ema.every >= 1, "at least 1"),
        ("ema.power", 0 < ema.power < math.inf, "positive"),
        ("train.steps", 1 <= train.steps < 2**31, "at least 1 (and below 2^31)"),
        ("train.eval_every", train.eval_every >= 0, "at least 0 (0 = never)"),
        ("train.eval_size", train.eval_size >= 1, "at least 1"),
        ("train.sample_every", train.sample_every >= 0, "at least 0 (0 = never)"),
        ("train.checkpoint_every", train.checkpoint_every >= 1, "at least 1"),
        ("train.log_every", train.log_every >= 0, "at least 0 seconds"),
        ("train.keep_last", train.keep_last >= 1, "at least 1"),
        ("train.keep_best", train.keep_best >= 0, "at least 0"),
        (
            "train.keep_every",
            _is_multiple(train.keep_every, train.checkpoint_every),
            f"a multiple of train.checkpoint_every={train.checkpoint_every} (0 = none)",
        ),
        ("train.max_skipped", train.max_skipped >= 1, "at least 1"),
        ("train.absurd", train.absurd == 0 or 1 < train.absurd < math.inf, "above 1 (0 = off)"),
        ("train.stuck_after", train.stuck_after >= 0, "at least 0 seconds (0 = never)"),
        ("fid.every", fid.every >= 0, "at least 0 (0 = never)"),
        ("fid.every", images or not fid.every, "0 for clips, which have no FID"),
        ("fid.num", fid.num >= 2, "at least 2"),
        ("fid.reference", fid.reference or not fid.every, "the real images to compare with"),
        ("fid.inception", fid.inception or not fid.every, "the file of Inception's weights"),
        ("fid.autoencoder", fid.autoencoder or not (fid.every and latents), "that of these latents"),
        ("fid.sampler", fid.sampler in SAMPLERS, f"one of {', '.join(SAMPLERS)}"),
        ("fid.steps", fid.steps >= 1, "at least 1"),
        ("fid.guidance", 0 <= fid.guidance < math.inf, "finite and at least 0 (1 = off)"),
        *(
            (
                f"{part}.guidance_interval",
                is_interval(config[part].guidance_interval),
                "(low, high) in [0, 1], low below high",
            )
            for part in ("fid", "sampling")
        ),
        ("fid.batch_size", fid.batch_size >= 1, "at least 1"),
        ("sampling.num", 1 <= config.sampling.num <= MOST_SAMPLES, f"from 1 to {MOST_SAMPLES}"),
    ]
    wrong = [f"{name}={_get(config, name)!r} must be {what}" for name, good, what in rules if not good]
    if wrong:
        raise InputError("; ".join(wrong))


def warnings(config: ConfigDict, count: int | None = None, heldout: int | None = None) -> list[str]:
    """What can be, but is hardly meant, one line each.

    Args:
        config: of a run.
        count, heldout: images or clips in the two splits of its data set, where that is known.
    """
    lines = []
    samples = "images" if models.family(config.model) is models.DiPoM else "clips"
    warmup, steps, batch = config.optimizer.warmup_steps, config.train.steps, config.data.batch_size
    if 2 * warmup > steps:
        short = f" and gets to {steps / warmup:.0%} of optimizer.learning_rate" if warmup > steps else ""
        lines.append(
            f"warning: the learning rate rises until step {warmup:,} (optimizer.warmup_steps) of {steps:,} "
            f"(train.steps){short}; a tenth of the steps is usual: "
            f"--config.optimizer.warmup_steps={steps // 10}"
        )
    if count is not None and batch > count:
        lines.append(
            f"warning: a batch of {batch:,} (data.batch_size) has each of the {count:,} training {samples} "
            f"{batch / count:.3g} times"
        )
    if heldout is not None and config.train.eval_every and heldout < FEW:
        lines.append(f"warning: the held-out loss is of {heldout:,} {samples}, and says little")
    return lines


def default_workdir(config: ConfigDict) -> Path:
    """runs/<name> in the current folder."""
    return Path("runs") / config.name


def read_config(workdir: str | Path) -> ConfigDict | None:
    """The configuration kept in a workdir, or None if there is none.

    Raises:
        InputError: it is damaged.
    """
    path = remote.folder(workdir) / FILE
    if (text := _content(path)) is None:
        return None
    try:
        fields = json.loads(text)
        found = fields if isinstance(fields, dict) else {}
        lacking = [name for name in SECTIONS if not isinstance(found.get(name), dict)]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        return ConfigDict(_tuples(fields))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); choose another {remote.flag(path)}") from error


def keep_config(
    workdir: str | Path,
    config: ConfigDict,
    data_digest: str = "",
    words: Sequence[str] = (),
    encoding: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json into the workdir, which is created; a run that goes on there must be the same run.

    Args:
        workdir: of the run.
        config: of the run.
        data_digest: of the data set that it learns from (`Manifest.digest`), kept as data.digest.
        words: its table of words, kept as data.words, so that prompts need no data.
        encoding: what its latents and embeddings were made with (`Manifest.encoding`), kept as data.encoding,
            so that decoding needs no data.

    Raises:
        InputError: see `check_kept`.
    """
    check_kept(workdir, config, data_digest)
    write_config(workdir, config, data_digest, words, encoding)


def check_kept(workdir: str | Path, config: ConfigDict, data_digest: str = "") -> None:
    """What `keep_config` finds before it writes.

    Raises:
        InputError: the workdir belongs to another configuration (the message lists the fields) or to other
            data, or is some other folder with files in it.
    """
    workdir = remote.folder(workdir)
    kept = read_config(workdir)
    # A process that was killed may have left the file unfinished.
    if kept is None and not all(re.fullmatch(rf"\.{FILE}(\.\d+)?\.new", name) for name in names_in(workdir)):
        raise InputError(
            f"{workdir} is not empty and not a workdir (it has no {FILE}); choose another "
            f"{remote.flag(workdir)}"
        )
    differing = [] if kept is None else differences(kept, config)
    if differing:
        raise InputError(
            f"{workdir} belongs to another configuration; choose another {remote.flag(workdir)} or the same "
            "fields:\n  " + "\n  ".join(differing)
        )
    asked = config.train.remote
    where = asked if kept is None else kept.train.get("remote", "")
    if where != asked and not remote.is_remote(workdir):  # in a bucket they are beside config.json
        raise InputError(
            f"the checkpoints of {workdir} are in {where or 'it'}, not in {asked or 'it'}: give "
            f"--config.train.remote={where}, or go on in a new --workdir, with --config.init_from={workdir} "
            "--config.init_state=True"
        )
    before = "" if kept is None else kept.data.get("digest", "")
    if before and before != data_digest:
        raise InputError(
            f"the data in {config.data.dir} (checksum {data_digest}) is not what {workdir} has learned from "
            f"so far (checksum {before}): choose data.dir, or go on with it in a new {remote.flag(workdir)}, "
            f"with --config.init_from={workdir} --config.init_state=True"
        )


def _content(path: Path) -> bytes | None:
    if remote.is_remote(path):
        return remote.read(path)
    return path.read_bytes() if path.is_file() else None


def write_config(
    workdir: str | Path,
    config: ConfigDict,
    data_digest: str = "",
    words: Sequence[str] = (),
    encoding: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json into the workdir, which is created: whole or not at all; see `keep_config`."""
    workdir = remote.folder(workdir)
    fields = config.to_dict()
    if data_digest:
        fields["data"]["digest"] = data_digest
    if words:
        fields["data"]["words"] = list(words)
    if encoding:
        fields["data"]["encoding"] = dict(encoding)
    if folder := fields["data"]["dir"]:
        fields["data"]["dir"] = str(Path(folder).absolute())  # for commands called elsewhere
    if not remote.is_remote(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    path, text = workdir / FILE, json.dumps(fields, indent=2) + "\n"
    if _content(path) != text.encode():  # a run that is done needs no room on the disk
        write_whole(path, text, writer=jax.process_index())


def differences(kept: ConfigDict, config: ConfigDict) -> list[str]:
    """`changed_fields`, one line each."""
    found = changed_fields(kept, config).items()
    return [f"{name}: {old!r} there, {new!r} now" for name, (old, new) in found]


def changed_fields(kept: ConfigDict, config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Fields that decide what is trained and are not the same: by name, in order, both values.

    A field that one side lacks has its default there: a run may be older than the field.
    """
    fields = models.own_fields(models.family(config.model)).items()
    usual = {f"model.{name}": f.default for name, f in fields if f.default is not dataclasses.MISSING} | ADDED
    old, new = usual | _flat(kept.to_dict()), usual | _flat(config.to_dict())
    return {
        name: (old.get(name, "missing"), new.get(name, "missing"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(CHANGEABLE)
    }


def _is_multiple(value: int, of: int) -> bool:
    return value >= 0 and of >= 1 and value % of == 0


def _get(config: ConfigDict, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def _tuples(value: Any) -> Any:
    """JSON knows no tuples: they come back from its lists."""
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value
