"""Makes the data sets that train.py reads: a folder of shards with a manifest, checked as it is written."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pom_jax.data import Manifest, digits
from pom_jax.errors import InputError


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python prepare.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, title="data sets", metavar="NAME")
    add_command(
        commands,
        "digits",
        digits.prepare,
        next_step="python train.py --config=configs/digits.py",
        description="1,797 real handwritten digits, 8 x 8 pixels, from scikit-learn: no download.",
    )
    arguments = parser.parse_args(argv)
    out = arguments.out or Path("data") / arguments.command
    print(f"preparing {arguments.command} in {out}", flush=True)
    start = time.perf_counter()
    try:
        manifest = arguments.prepare(out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(describe(manifest))
    print(f"done in {time.perf_counter() - start:.1f} s: {out}/manifest.json says what is in it")
    elsewhere = f" --config.data.dir={out}" if arguments.out else ""
    print(f"next: {arguments.next_step}{elsewhere}")
    return 0


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    prepare: Callable[[Path], Manifest],
    *,
    description: str,
    next_step: str,
) -> None:
    """Adds one data set to the command line; `next_step` is the command that uses it."""
    command = commands.add_parser(name, help=description, description=description)
    command.add_argument("--out", type=Path, metavar="DIR", help=f"folder to make (default: data/{name})")
    command.set_defaults(prepare=prepare, next_step=next_step)


def describe(manifest: Manifest) -> str:
    """What a data set holds, in a few lines."""
    height, width, channels = manifest.image_shape
    lines = [
        f"  {split}: {manifest.records(split)} images in {len(shards)} shard{'s' * (len(shards) != 1)}, "
        f"{sum(shard.bytes for shard in shards) / 1e6:.1f} MB"
        for split, shards in manifest.splits.items()
    ]
    content = f"{height} x {width} x {channels}, {len(manifest.classes)} classes"
    lines.append(f"  each {content}; data checksum {manifest.digest}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
