"""Compares the library with arrays recorded from the authors' PyTorch code.

    python tests/golden/run.py DIR

runs every case (.npz file) of a folder, prints for each its largest error beside what is allowed, as a share
of the largest value of the official array, then what is not covered and why. It ends with `N passed, M
failed, K not covered` and exit code 1 if a case failed, 2 for a folder without cases. Without DIR: the subset
kept in tests/golden/data.
"""

import dataclasses
import fnmatch
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from tests.golden import (  # noqa: E402
    cases_diffusion,
    cases_embeddings,
    cases_latents,
    cases_layers,
    cases_mixers,
    cases_training,
    cases_video,
)
from tests.golden.case import Adapter, Check, LeftOut, load  # noqa: E402

DATA = Path(__file__).parent / "data"

# The first pattern that fits a file's name decides; a sentence says why a family is left out.
ADAPTERS: tuple[tuple[str, Adapter | str], ...] = (
    ("homm_*", cases_mixers.product_mixer),
    ("pom_activation", cases_mixers.activation),
    ("pom_*_causal", cases_mixers.power_mixer),
    ("pom_state_*", cases_mixers.streamed_mixer),
    ("pom_*", cases_mixers.power_mixer),
    ("rope_tables", cases_mixers.rotary_tables),
    ("rope1d_state_forward", cases_mixers.streamed_mixer),
    ("rope1d_*", cases_mixers.power_mixer),
    ("rope2d_*", cases_mixers.power_mixer),
    ("dihblock_*", cases_layers.block),
    ("ditblock", cases_layers.block),
    ("dih_*", cases_layers.image_model),
    ("dihpp_*", cases_layers.image_model),
    ("dit_*", cases_layers.image_model),
    ("init_statistics", cases_layers.initial_values),
    ("time_embedding", cases_layers.time_embedding),
    ("sincos_embedding_2d", cases_embeddings.harmonics),
    ("mae_sincos_embedding", cases_embeddings.dit_table),
    ("pos_emb_upscale", cases_embeddings.resampled),
    ("upscale_positions_and_shift", cases_embeddings.later_positions_and_shift),
    ("noise_schedules", cases_diffusion.schedules),
    ("sampler_linear_dpm*", "another second-order solver: theirs extrapolates the noise, ours the data"),
    ("sampler_linear_*", cases_diffusion.linear_samplers),
    ("sampler_dih", cases_diffusion.model_samplers),
    ("lr_schedules", cases_training.learning_rates),
    ("adamw", cases_training.adamw),
    ("lamb", cases_training.lamb),
    ("ema", cases_training.averages),
    ("jit_*", "the pixel model JiT is another network"),
    ("latent_tar", cases_latents.chunks),
    ("video_sincos_3d", cases_video.positions),
    ("video_block_*", cases_video.block),
    ("video_model_*", cases_video.model),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a case came to: "pass", "fail" or "skip", its line, and its parts that are not covered."""

    status: str
    line: str
    left_out: tuple[LeftOut, ...] = ()


def run_case(path: Path) -> Result:
    """Runs one file through the adapter that its name asks for."""
    adapter = next((found for pattern, found in ADAPTERS if fnmatch.fnmatch(path.stem, pattern)), None)
    if adapter is None or isinstance(adapter, str):
        return Result("skip", f"{path.stem}: {adapter or 'an unknown kind of case'}")
    # Accelerators round the operands of float32 products otherwise.
    with jax.default_matmul_precision("highest"):
        findings = list(adapter(load(path)))
    checks = [f for f in findings if isinstance(f, Check)]
    left_out = tuple(f for f in findings if isinstance(f, LeftOut))
    if not checks:
        return Result("skip", f"{path.stem}: nothing of it is compared", left_out)
    failed = [check for check in checks if not check.error <= check.tolerance]
    parts = []
    for kind in ("out", "grad"):
        some = [c for c in checks if c.name.startswith("grad") == (kind == "grad")]
        if some:
            worst = max(some, key=lambda c: c.error / max(c.tolerance, 1e-30))
            parts.append(f"{kind} {worst.error:.1e} of {worst.tolerance:.1e}")
    line = f"{path.stem:34} {len(checks):3} arrays   {'   '.join(parts)}"
    for check in failed:
        line += f"\n      {check.name}: error {check.error:.2e}, allowed {check.tolerance:.1e}"
    return Result("fail" if failed else "pass", line, left_out)


def main(arguments: list[str]) -> int:
    """Runs a folder and prints the report; returns the exit code."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(__doc__)
        return 0 if arguments[0] in ("-h", "--help") else 2
    folder = Path(arguments[0]) if arguments else DATA
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        print(f"error: no .npz case in {folder}", file=sys.stderr)
        return 2
    results = {"pass": [], "fail": [], "skip": []}
    left_out: list[str] = []
    for path in paths:
        result = run_case(path)
        results[result.status].append(result)
        left_out += [f"{path.stem} {part.part}: {part.reason}" for part in result.left_out]
        if result.status != "skip":
            print(f"{result.status}  {result.line}", flush=True)
    if left_out:
        print("\nparts of these cases that are not compared:")
        print("\n".join(f"      {line}" for line in left_out))
    if results["skip"]:
        print("\nnot covered:")
        print("\n".join(f"      {result.line}" for result in results["skip"]))
    counts = {status: len(found) for status, found in results.items()}
    print(f"\n{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} not covered")
    return 1 if results["fail"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
