"""FID and the field's other scores of a trained run: draws its samples, and scores them.

What is finished stays: the parts of the samples (`sampling.bank`), the statistics of the reference and the
scores of each way to sample, so that the same command goes on where it was killed.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pom_jax.diffusion.guidance import choose_interval, interval_in_words
from pom_jax.errors import InputError
from pom_jax.evaluation.image_scores import ImageScores, score_images
from pom_jax.evaluation.images import Images
from pom_jax.evaluation.inception_weights import load_inception
from pom_jax.evaluation.kept_reference import KeptReference
from pom_jax.evaluation.precision_recall import NEIGHBOURS
from pom_jax.evaluation.reference import check_file, open_reference
from pom_jax.evaluation.shards import rgb
from pom_jax.evaluation.sweep import Setting, Sweep, make_grid
from pom_jax.hosts import this_host
from pom_jax.remote import is_remote
from pom_jax.sampling import SamplingProgress, load
from pom_jax.sampling.bank import PART, Bank, open_bank, write_bank
from pom_jax.sampling.generate import Generator
from pom_jax.sampling.writers import check_folder, check_output
from pom_jax.training import checkpoint
from pom_jax.vae.files import weights_sha256

WAIT = 10.0  # seconds between two looks for what other hosts draw
PATIENCE = 900.0  # seconds that a host which lacks parts may be away, for its start or for good

Say = Callable[[str], None]


def score_workdir(
    workdir: str | Path,
    reference: str | os.PathLike[str],
    inception: str | os.PathLike[str],
    *,
    num: int = 50_000,
    emas: Sequence[int | None] = (0,),
    samplers: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    guidances: Sequence[float] | None = None,
    interval: Sequence[float] | None = None,
    step: int | None = None,
    seed: int = 0,
    autoencoder: str | os.PathLike[str] | None = None,
    size: int | None = None,
    out: str | Path | None = None,
    npz_out: str | Path | None = None,
    reference_out: str | Path | None = None,
    keep_samples: bool = True,
    part: int = PART,
    batch_size: int = 256,
    host: int | None = None,
    hosts: int | None = None,
    say: Say = print,
) -> Sweep | None:
    """Draws `num` samples in each way that is asked for, and scores them against real images.

    Labels go through all classes in turn; image i depends on the seed, i and its label.

    Args:
        workdir: of train.py.
        reference: see `open_reference`.
        inception: file of weights, see `load_inception`.
        num: samples of each way; the field's numbers are of 50,000.
        emas, samplers, steps, guidances: all their combinations, see `make_grid`.
        interval: of the guidance, see `diffusion.guide`; everywhere by default.
        step: which checkpoint; the newest by default.
        seed: of the noise.
        autoencoder: folder of the one that the latents are of, in diffusers' format.
        size: crops the pictures of a folder of real images, see `open_images`.
        out: folder for samples and scores; eval/ of the run by default.
        npz_out: also write the samples there for ADM's suite; for one way to sample only.
        reference_out: also keep the reference's statistics there, see `save_reference`.
        keep_samples: else the samples of each way are deleted once it is scored.
        part: samples of a file on disk.
        batch_size: images drawn at once, over all devices of a host.
        host, hosts: this one of so many that share the sampling and see the same `out`; those of
            jax.distributed by default. Host 0 waits for the others and scores.
        say: told what happens.

    Returns:
        The scores; None on all hosts but host 0.

    Raises:
        InputError: whatever is wrong with any of these, before anything is drawn; a disk that takes no more;
            another host that has ended or never begun.
    """
    host, hosts = this_host(host, hosts)
    _check_numbers(num=num, part=part, batch_size=batch_size, seed=seed)
    interval = choose_interval(interval)
    config = checkpoint.load_config(workdir)
    grid = make_grid(config, emas=emas, samplers=samplers, steps=steps, guidances=guidances)
    out = _folder(workdir, out)
    _check_files(out, npz_out, reference_out, len(grid))
    weights = load_inception(inception)
    opened = open_reference(reference, size, autoencoder)
    opened.check(weights)
    scoring = _Scoring(
        workdir=workdir,
        config=config,
        step=checkpoint.latest_step(workdir) if step is None else step,
        num=num,
        settings={
            "interval": interval,
            "seed": seed,
            "autoencoder": None if autoencoder is None else weights_sha256(autoencoder),
            "part": part,
        },
        autoencoder=autoencoder,
        real=KeptReference(opened, weights, out / "reference", reference_out, say),
        out=out,
        npz_out=npz_out,
        keep_samples=keep_samples,
        batch_size=batch_size,
        host=host,
        hosts=hosts,
        say=say,
    )
    found = _score_grid(scoring, grid)
    if host > 0:
        return None
    if reference_out is not None:
        scoring.real.fit()  # nothing did where all was scored before
    return Sweep(config, grid, found)


@dataclass(frozen=True)
class _Scoring:
    """What all ways to sample share; see `score_workdir`.

    Attributes:
        step: one, even while the training goes on.
        settings: of every bank, beside those of its `Setting`.
    """

    workdir: str | Path
    config: ConfigDict
    step: int | None
    num: int
    settings: Mapping[str, Any]
    autoencoder: str | os.PathLike[str] | None
    real: KeptReference
    out: Path
    npz_out: str | Path | None
    keep_samples: bool
    batch_size: int
    host: int
    hosts: int
    say: Say


def _score_grid(scoring: _Scoring, grid: Sequence[Setting]) -> list[ImageScores]:
    """The scores of all ways in order, as far as this host has them; loads each average once."""
    found, generator = [], None
    for place, setting in enumerate(grid, 1):
        if generator is None or generator.ema != setting.ema:
            generator = None  # before the next one takes as much memory
            generator = load(scoring.workdir, scoring.step, setting.ema, scoring.autoencoder)
        name = f"{setting.name(scoring.config)}, step {generator.step:,}, seed {scoring.settings['seed']}"
        scores = _score_way(scoring, setting, generator, f"[{place}/{len(grid)}] {name}")
        if scores is not None:
            found.append(scores)
    return found


def _score_way(scoring: _Scoring, setting: Setting, generator: Generator, title: str) -> ImageScores | None:
    """Draws and scores one way to sample, or reads its scores; None on all hosts but host 0 that draw."""
    say, real, host, hosts = scoring.say, scoring.real, scoring.host, scoring.hosts
    settings = setting._asdict() | dict(scoring.settings)
    del settings["ema"]
    bank = open_bank(scoring.out / "samples", generator, scoring.num, **settings)
    file = scoring.out / "scores" / f"{bank.folder.name}-{scoring.num}-{real.digest}.json"
    say(title)
    if file.is_file() and scoring.npz_out is None:
        say(f"scored before: {file} (delete it to score again)")
        return ImageScores.read(file)
    if host == 0:
        real.fit()  # what cannot be read fails before hours of sampling
    with SamplingProgress() as progress:
        bank.fill(
            generator, batch_size=scoring.batch_size, host=host, hosts=hosts, say=say, progress=progress
        )
    if host > 0:
        _wait_for_scores(file, say)
        return None
    _wait_for_parts(bank, hosts, say)
    if scoring.npz_out is not None:
        write_bank(scoring.npz_out, bank)
        say(f"written: {scoring.npz_out} (arr_0 images, arr_1 labels)")
    scores = _score(bank, real, _about(scoring.workdir, bank, scoring.autoencoder), say)
    scores.write(file)
    if not scoring.keep_samples:
        bank.remove()
    return scores


def _folder(workdir: str | Path, out: str | Path | None) -> Path:
    if out is None and is_remote(workdir):
        raise InputError(f"{workdir} is only read: give `out`, a folder for the scores")
    return Path(workdir) / "eval" if out is None else Path(out)


def _check_numbers(*, num: int, part: int, batch_size: int, seed: int) -> None:
    if num <= NEIGHBOURS or part < 1 or batch_size < 1:
        raise InputError(
            f"num={num}, part={part}, batch_size={batch_size}: scores need more than {NEIGHBOURS} samples, "
            "parts and batches at least 1"
        )
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; it must be from 0 to {2**32 - 1}")


def _check_files(out: Path, npz_out: str | Path | None, reference_out: str | Path | None, ways: int) -> None:
    check_folder(out)
    if npz_out is not None:
        if ways > 1:
            raise InputError(f"{npz_out} is one file of samples, and {ways} ways to sample are asked for")
        if check_output(npz_out).suffix != ".npz":
            raise InputError(f"{npz_out}: samples for ADM's suite are an .npz")
    if reference_out is not None:
        check_file(reference_out)


def _images(bank: Bank) -> Images:
    height, width = bank.read(0).shape[1:3]

    def batches(size: int) -> Iterator[np.ndarray]:
        left = np.empty((0, height, width, 3), np.uint8)  # what the parts so far left of a batch
        for number in range(bank.parts):
            images = np.concatenate([left, rgb(bank.read(number))])
            whole = len(images) - len(images) % size
            for start in range(0, whole, size):
                yield images[start : start + size]
            left = images[whole:]
        if len(left):
            yield left

    return Images(str(bank.folder), (len(bank.labels), height, width, 3), batches)


def _score(bank: Bank, real: KeptReference, about: Mapping[str, str], say: Say) -> ImageScores:
    reference = real.fit()
    with SamplingProgress() as progress:
        return score_images(_images(bank), reference, real.weights, say=say, progress=progress, about=about)


def _about(workdir: str | Path, bank: Bank, autoencoder: str | os.PathLike[str] | None) -> dict[str, str]:
    s = bank.settings
    return {
        "checkpoint": f"step {s['step']} of {workdir}",
        "EMA": "none" if s["ema"] is None else f"{s['ema']:g}",
        "digest of the parameters": s["parameters"],
        "sampler": f"{s['sampler']}, {s['steps']} steps",
        "guidance": f"{s['guidance']:g}{interval_in_words(s['interval'], s['guidance'])}",
        "seed": str(s["seed"]),
        "labels": s["labels"],
        "autoencoder": "none" if autoencoder is None else f"{autoencoder}, sha256 {s['autoencoder']}",
    }


def _wait_for_parts(bank: Bank, hosts: int, say: Say) -> None:
    """Until the parts of all hosts are there.

    Raises:
        InputError: parts of a host are missing, and for PATIENCE seconds no process of it was seen to draw.
    """
    told, lacked, moved = "", Counter[int](), dict[int, float]()
    while hosts > 1:
        absent = [number for number in range(bank.parts) if not bank.path(number).exists()]
        if not absent and not (absent := bank.missing(say)):
            return
        now, lacks, of_hosts = time.monotonic(), Counter(number % hosts for number in absent), []
        for host, count in lacks.items():
            draws = bank.is_drawn_by(host)
            of_hosts.append(f"{count} of host {host}, which {'draws' if draws else 'does not draw now'}")
            if draws or count != lacked[host]:
                moved[host] = now
            elif now - moved[host] >= PATIENCE:
                raise InputError(
                    f"{count} parts of host {host} of {hosts} are missing in {bank.folder}, and no process "
                    f"of it has drawn there for {PATIENCE:,.0f} s: give the command of host {host} again, "
                    "then this one; what is finished stays"
                )
        lacked = lacks
        if (line := f"waiting for {len(absent)} of {bank.parts} parts: {'; '.join(of_hosts)}") != told:
            say(told := line)
        time.sleep(WAIT)


def _wait_for_scores(file: Path, say: Say) -> None:
    """With jax.distributed a process that ends takes the others with it, so it waits for host 0's scores."""
    say("host 0 scores the samples once all parts are there")
    while jax.process_count() > 1 and not file.exists():
        time.sleep(WAIT)
