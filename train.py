"""Trains a model, or goes on where the same command stopped.

    python train.py --config=configs/digits.py[:variant] [--workdir=DIR] [--config.section.field=value ...]

Everything the run writes is in its workdir. A second run of the command resumes an interrupted one.

Recipes: configs/digits.py (variants pom, power, attention, hybrid, quick) on a CPU; for ImageNet latents
configs/dipom_s2.py, dipom_b2.py, dipom_l2.py, dipom_xl2.py, dipom_xl2_512.py, dipom_xl2_1024.py,
and with attention dit_s2.py, dit_b2.py, dit_l2.py, dit_xl2.py and dit_xl2_512.py; configs/moving_digits.py
(variants pom, attention, memory, quick) for text to video on a CPU, and for latents of clips and captioned
pictures configs/video_s2.py, video_b2.py, video_xl2.py (variant streaming: frame after frame) and t2i_b2.py.
configs/common.py lists the fields that can be set with their meaning; those of the networks are explained in
pom_jax/models/dipom.py and polymorpher.py, and their sizes by name are in presets.py.
"""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from pom_jax.errors import InputError, run_command
from pom_jax.paths import expand_flags, expand_paths
from pom_jax.training.command import parse_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, such as configs/digits.py:attention.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<name of the config> if left out.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first of several processes, where JAX does not find them itself."
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "How many processes there are; 1 alone: no others are looked for."
)
_PROCESS = flags.DEFINE_integer("process", None, "Which of --processes this is, from 0.")
_PROFILE = flags.DEFINE_string(
    "profile",
    "",
    "First and last step to trace, such as 100:110, into WORKDIR/profile; of several processes each into its "
    "process_I.",
)
_DRY_RUN = flags.DEFINE_integer(
    "dry_run",
    None,
    "Compile the training step for so many virtual devices, on any machine and without data, print its "
    "memory, arithmetic and communication, and end.",
)
flags.DEFINE_alias("dry-run", "dry_run")
flags.mark_flag_as_required("config")
SCORED = ("digits", "moving-digits", "moving-digits-direction")  # data sets with scores of their own


def main(argv: Sequence[str]) -> int:
    """Trains what the flags describe."""
    from pom_jax import cluster
    from pom_jax.compilation import keep_programs
    from pom_jax.host_memory import keep_freed_memory
    from pom_jax.training import dry_run, loop
    from pom_jax.training.config import default_workdir
    from pom_jax.training.ledger import process_start

    if len(argv) > 1:
        raise InputError(f"arguments without a flag: {' '.join(argv[1:])}; see python train.py --help")
    if _DRY_RUN.value is not None:
        _CONFIG.value.train.remote = ""  # nothing is kept: no bucket is asked, no package of it needed
    expand_paths(_CONFIG.value)
    expand_flags("workdir")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # at once, also while XLA compiles; see training.interrupt
    keep_programs()
    if _DRY_RUN.value is not None:
        dry_run.make_devices(_DRY_RUN.value)
        for text in dry_run.plan(_CONFIG.value):
            print(text, flush=True)
        return 0
    keep_freed_memory()
    found = cluster.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if found is not None:
        print(found, flush=True)
    config = _CONFIG.value
    workdir = _WORKDIR.value or default_workdir(config)
    with cluster.one_for_all():
        return loop.train(config, workdir, make_writer(), SCORED, make_fid, _PROFILE.value, process_start())


def make_writer() -> Callable[[Path, Any, Any, Sequence[str] | None], None]:
    """What writes samples. Its packages are loaded here: the checkout may change under a run of days."""
    from pom_jax.sampling import write
    from pom_jax.sampling.films import write_films

    def write_samples(path: Path, samples: Any, labels: Any, names: Sequence[str] | None) -> None:
        """A grid of images, or of clips a strip each, and beside it the clips in motion."""
        if samples.ndim == 4:
            write(path, samples, labels, names)
            return
        for file in (path, path.with_suffix(".gif")):
            write_films(file, samples, names or ())

    return write_samples


def make_fid(config: Any, model: Any) -> Any:
    """What scores during training; its packages are imported only where it is asked for."""
    from pom_jax.evaluation.training_fid import TrainingFid

    return TrainingFid(config, model)


if __name__ == "__main__":
    run_command(main, parse_flags)
