"""Sizes of the named models: parameters, tokens, and the arithmetic of a forward pass.

    python -m benchmarks.parameters [SIDE]

prints a Markdown table for class-conditional models (1,000 classes) on SIDE x SIDE x 4 latents, 32 by default
(images of 256 pixels). Nothing is computed or measured: parameters are counted from shapes, operations from
the matrix products, a multiply-add as two.
"""

import sys
from typing import Any

from benchmarks.report import table
from pom_jax import models
from pom_jax.training.flops import forward_flops


def rows(side: int) -> list[list[object]]:
    """Name, tokens, parameters in millions and to the integer, GFLOP a forward pass of one image."""
    found: list[list[object]] = []
    for name in models.NAMES:
        config: dict[str, Any] = {"image_size": side, "channels": 4, "num_classes": 1000} | models.preset(
            name
        )
        tokens = (side // config["patch_size"]) ** 2 + config["registers"]
        count = models.count_parameters(models.build(config))
        found.append([name, tokens, f"{count / 1e6:.1f} M", f"{count:,}", forward_flops(config) / 1e9])
    return found


if __name__ == "__main__":
    header = ["model", "tokens", "parameters", "exactly", "GFLOP / image"]
    print(table(header, rows(int(sys.argv[1]) if len(sys.argv) > 1 else 32)))
