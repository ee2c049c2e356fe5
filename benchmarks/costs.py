"""What each policy of rematerialisation keeps in memory: compiled training steps, and the estimate of them.

    python -m benchmarks.costs [RECIPE ...] [--remat none dots states full] [--batch=256] [--fsdp=N]
                               [--topology=v5p:2x2x2]

Compiles the training step of each recipe (files of configs/, without .py; dipom_xl2 by default) for abstract
arrays: nothing is computed. `python train.py --config=RECIPE --dry-run=N` says more about one of them, on any
number of virtual CPU devices. With --topology (and libtpu installed, `pip install libtpu`) the step is
compiled for TPUs that need not be there; else for this machine's devices.

Memory is that of one device in GiB: what the compiler says a step needs besides the state, and all together.
Recomputed is the arithmetic of the traced step beyond that without rematerialisation, in forward passes.
"""

import argparse
import importlib
import os
from typing import Any

import jax
from jax.experimental import topologies

from benchmarks import matmuls, report
from pom_jax.nn.blocks import REMAT
from pom_jax.ops.mesh import tracing_for
from pom_jax.training import flops, memory
from pom_jax.training.dry_run import with_data
from pom_jax.training.estimate import estimate
from pom_jax.training.run import Run, make_run


def costs(recipe: str, remat: str, arguments: argparse.Namespace, devices: Any) -> dict[str, Any]:
    """The figures of one recipe under one policy."""
    run = make(recipe, remat, arguments, devices)
    with jax.set_mesh(run.mesh):
        guess = estimate(run)
        compiled, line = run.compiled_step()
    print(f"{recipe}, remat {remat}: {line}", flush=True)
    needed = memory.of_program(compiled, run.state, run.batch)
    more = arithmetic(run) - arithmetic(make(recipe, "none", arguments, devices))
    return {
        "work": needed.work / 2**30,
        "together": needed.together / 2**30,
        "estimated": guess.together / 2**30,
        "off": f"{100 * (guess.together / needed.together - 1):+.1f} %",
        "recomputed": more / (flops.forward_flops(run.config.model) * arguments.batch),
    }


def make(recipe: str, remat: str, arguments: argparse.Namespace, devices: Any) -> Run:
    """A recipe under one policy, on its data or on synthetic data."""
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.model.remat = remat
    config.mesh.fsdp = arguments.fsdp
    config.data.batch_size = arguments.batch
    return make_run(with_data(config), devices)


def arithmetic(run: Run) -> int:
    """Operations of all matrix products of the traced step."""
    with jax.set_mesh(run.mesh):
        products = matmuls.products(jax.make_jaxpr(run.step)(run.state, run.batch).jaxpr)
    return sum(product.flops * times for product, times in products.items())


def main() -> None:
    """Compiles and reports."""
    parser = report.parser(__doc__)
    parser.add_argument("recipes", nargs="*", default=["dipom_xl2"], help="names of recipes")
    parser.add_argument("--remat", nargs="+", default=list(REMAT), choices=list(REMAT), help="policies")
    parser.add_argument("--batch", type=int, default=256, help="images of all devices together")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share parameters and optimiser")
    parser.add_argument("--topology", help="TPUs to compile for, such as v5p:2x2x2")
    arguments = parser.parse_args()

    devices, backend = jax.devices(), jax.default_backend()
    if arguments.topology:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask the network which machine this is
        devices, backend = topologies.get_topology_desc(arguments.topology, "tpu").devices, "tpu"
    with tracing_for(backend):
        cases = [(recipe, remat) for recipe in arguments.recipes for remat in arguments.remat]
        found = {case: costs(*case, arguments, devices) for case in cases}
    header = ["recipe", "remat", *next(iter(found.values()))]
    text = report.table(header, [[*case, *row.values()] for case, row in found.items()])
    text += f"\ncompiled for {len(devices)} x {devices[0].device_kind}, {arguments.batch} images, "
    text += f"fsdp={arguments.fsdp}; GiB of one device"
    figures = {" ".join(case): row for case, row in found.items()}
    name = "costs" if arguments.topology is None else "costs_tpu"
    report.write(name, text, {"devices": devices[0].device_kind, "steps": figures}, arguments)


if __name__ == "__main__":
    main()
