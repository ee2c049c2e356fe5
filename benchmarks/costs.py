"""What the ImageNet recipes cost: parameters, arithmetic, and memory per device from the compiled program.

    python -m benchmarks.costs [RECIPE ...] [--topology=v5p:2x2x2] [--fsdp=N] [--remat=full] [--accumulate=N]

Compiles the training step of each recipe (files of configs/, without .py; dipom_xl2 by default) for abstract
arrays; nothing is computed, and no parameter is made. With --topology (and libtpu installed, `pip install
libtpu`) it compiles for TPUs that need not be there; else for the devices of this machine.

Arithmetic counts matrix products, a multiply-add as two. Memory is what the compiler says a device needs for
arguments (state and batch) and for work, in GiB; the state is updated in place.
"""

import argparse
import importlib
import os
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

from benchmarks import report
from pom_jax.training import checkpoint, flops
from pom_jax.training.run import Run, make_run

RECIPES = ("dipom_xl2", "dipom_xl2_512", "dipom_xl2_1024")


def make(recipe: str, arguments: argparse.Namespace, devices: Any) -> Run:
    """The recipe on synthetic data, with the memory options of the command line."""
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.data.source = "synthetic"
    config.mesh.fsdp = arguments.fsdp
    config.model.remat = arguments.remat
    config.optimizer.accumulate = arguments.accumulate
    return make_run(config, devices)


def costs(run: Run) -> dict[str, Any]:
    """The figures of one recipe."""
    config = run.config
    step = flops.step_flops(config.model, config.data.batch_size)
    with jax.set_mesh(run.mesh):
        compiled, line = run.compiled_step()
    print(f"{config.name}: {line}", flush=True)
    memory = compiled.memory_analysis()
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.state.params)),
        "GFLOP / image": flops.forward_flops(config.model) / 1e9,
        "TFLOP / step": step / 1e12,
        "EFLOP / run": step * config.train.steps / 1e18,
        "state, GB": checkpoint.tree_bytes(run.state) / 1e9,
        "images / device": config.data.batch_size // run.mesh.size,
        "arguments, GiB": memory.argument_size_in_bytes / 2**30,
        "work, GiB": memory.temp_size_in_bytes / 2**30,
    }


def main() -> None:
    """Compiles and reports."""
    parser = report.parser(__doc__)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), help="names of recipes")
    parser.add_argument("--topology", help="TPUs to compile for, such as v5p:2x2x2")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share parameters and optimiser")
    parser.add_argument("--remat", default="full", help="none, dots or full")
    parser.add_argument("--accumulate", type=int, default=1, help="slices of the batch")
    arguments = parser.parse_args()

    devices, backend = jax.devices(), jax.default_backend()
    if arguments.topology:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask the network which machine this is
        devices, backend = topologies.get_topology_desc(arguments.topology, "tpu").devices, "tpu"
    # The library asks which backend it computes on while it is traced.
    with mock.patch.object(jax, "default_backend", return_value=backend):
        found = {name: costs(make(name, arguments, devices)) for name in arguments.recipes}
    header = ["recipe", *next(iter(found.values()))]
    text = report.table(header, [[name, *row.values()] for name, row in found.items()])
    target = f"compiled for {len(devices)} x {devices[0].device_kind}, fsdp={arguments.fsdp}, "
    text += f"\n{target}remat={arguments.remat}, accumulate={arguments.accumulate}"
    report.write("costs", text, {"recipes": found}, arguments)


if __name__ == "__main__":
    main()
