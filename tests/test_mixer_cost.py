"""What the compiled mixer costs: nothing of all pairs, all linear in tokens, one sum over devices."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from pom_jax.nn import Phase, PoM, Rotary
from pom_jax.ops import runs
from tests.layers import WIDTH, parameters

TOKENS = 1021  # a prime, which no other size is near
RAGGED = (1, 300, 7, 500, 213)
PHASE = Phase(((math.inf, 5.0),))


def compiled(
    layer: Any, tokens: int, options: dict[str, Any], width: int = WIDTH, slopes: bool = True
) -> Any:
    """The program of a forward pass, or of value and gradients, on tokens that are never made.

    Of the options `state` is whether there is one, and `mask` the shape of one, whose slope is taken too.
    """
    p, x = parameters(layer, width), jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    state = layer.init_state(1, width) if options.get("state") else None
    mask = jax.ShapeDtypeStruct(options["mask"], jnp.float32) if "mask" in options else None
    options = {k: v for k, v in options.items() if k not in ("state", "mask")}

    def run(p: Any, x: Array, mask: Array | None) -> Any:
        return layer.apply(p, x, state=state, mask=mask, **options)

    def loss(p: Any, x: Array, mask: Array | None) -> Any:
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(run(p, x, mask)))

    return jax.jit(jax.grad(loss, (0, 1, 2)) if slopes else run).lower(p, x, mask).compile()


def array_shapes(program: Any) -> list[tuple[int, ...]]:
    """Shapes of all arrays that a compiled program names."""
    found = re.findall(r"\b(?:pred|[bsuf]\d+|bf16)\[([\d,]+)\]", program.as_text())
    return [tuple(map(int, sizes.split(","))) for sizes in set(found)]


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (PoM(), {"causal": True, "state": True}),
        (PoM(implementation="lean"), {"causal": True, "state": True}),
        (PoM(form="power", phase=PHASE, implementation="lean"), {"frames": RAGGED}),
        (PoM(reads=("own", "last", "past"), expansion=1, implementation="naive"), {"frames": 1}),
        (PoM(form="power", rotary=Rotary(), implementation="lean"), {"frames": TOKENS}),
        (PoM(implementation="naive"), {"mask": (1, TOKENS)}),
        (
            PoM(reads=("last", "all"), expansion=1, implementation="lean"),
            {"mask": (1, TOKENS), "frames": RAGGED},
        ),
    ],
)
def test_no_array_has_two_axes_of_tokens_forwards_or_backwards(layer: PoM, options: dict[str, Any]) -> None:
    shapes = array_shapes(compiled(layer, TOKENS, options))
    assert any(TOKENS in shape for shape in shapes)
    assert all(sum(size >= TOKENS for size in shape) < 2 for shape in shapes)
    assert max(map(math.prod, shapes)) < TOKENS**2 / 4


def test_the_search_finds_an_array_of_all_pairs() -> None:
    """Under a mask for each query there is one, which the test above would tell."""
    shapes = array_shapes(compiled(PoM(), TOKENS, {"mask": (1, TOKENS, TOKENS)}, slopes=False))
    assert any(sum(size >= TOKENS for size in shape) == 2 for shape in shapes)


@pytest.mark.parametrize("options", [{"causal": True}, {"frames": 64}], ids=["causal", "frames"])
def test_operations_double_with_the_tokens(options: dict[str, Any]) -> None:
    layer = PoM(implementation="naive")
    once, twice = (compiled(layer, n, options).cost_analysis()["flops"] for n in (1024, 2048))
    assert twice / once == pytest.approx(2, rel=0.02)


def test_naive_takes_nine_products_and_lean_ten() -> None:
    """Forwards and backwards, each of tokens with a matrix [D, K E]; the count takes one run of a loop.

    Lean's two products with the slopes of the gates are of all tokens at once, its eight others run by run.
    """
    width, count = 256, 2
    product = 2 * runs.CPU_ROWS * width * 2 * 2 * width
    for method, expected in (("naive", 9 * count), ("lean", 2 * count + 8)):
        program = compiled(PoM(implementation=method), count * runs.CPU_ROWS, {}, width)
        assert expected < program.cost_analysis()["flops"] / product < expected + 0.7 * count


@pytest.mark.parametrize("options", [{"causal": True}, {"frames": 64}], ids=["causal", "frames"])
def test_lean_memory_is_linear_and_a_third_of_naive(options: dict[str, Any]) -> None:
    """Beside arrays like the tokens lean keeps the projections of the gates, and features of one run."""
    layer, width, tokens = PoM(), 32, 2**14

    def temporary(method: str, tokens: int) -> int:
        program = compiled(layer.clone(implementation=method), tokens, options, width)
        return program.memory_analysis().temp_size_in_bytes

    lean = temporary("lean", tokens)
    gates, like_tokens = 4 * tokens * 2 * 64, 4 * tokens * width
    assert lean <= 4.1 * temporary("lean", tokens // 4)
    assert lean <= temporary("naive", tokens) / 3
    assert lean <= gates + 5 * like_tokens


def test_lean_recomputes_the_tokens_of_one_run_too() -> None:
    """Which a compiler would keep if they were computed at once."""
    naive, lean = (
        compiled(PoM(implementation=method), runs.CPU_ROWS, {}, 384).memory_analysis().temp_size_in_bytes
        for method in ("naive", "lean")
    )
    assert lean < 0.65 * naive


SHARDED = """
import json
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from pom_jax.nn import Phase, PoM, Rotary
from pom_jax.training.collectives import collectives
from pom_jax.training.sharding import make_mesh
from tests.layers import normal, parameters, quick_jit, uniform

found = []
x, mask, at = normal(1, 2, 64, 8), uniform(2, 2, 64), 4 * normal(3, 64, 1)
mesh = make_mesh({"data": 1, "context": 8})
tokens = NamedSharding(mesh, P(None, "context"))
phase = Phase(((5.0,),))
for layer, masked, options in (
    (PoM(), True, {}),
    (PoM(form="power", gate_heads=4), False, {}),
    (PoM(phase=phase, implementation="lean"), True, {}),
    (PoM(form="power", reads=("own", "last", "past"), phase=phase), True, {"frames": (7, 30, 27)}),
    (PoM(reads=("last", "all"), rotary=Rotary()), False, {"frames": 32}),
    (PoM(reads=("past", "own"), rotary=Rotary(), implementation="lean"), False, {"frames": 4}),
    (PoM(reads=("own", "past"), count="frames"), True, {"frames": 1}),
    (PoM(), False, {"causal": True}),
    (PoM(form="power", phase=phase, implementation="lean"), True, {"causal": True, "state": True}),
):
    p = jax.device_put(parameters(layer), NamedSharding(mesh, P()))
    place = {"positions": at} if layer.phase or layer.rotary else {}
    state = jax.tree.map(lambda leaf: leaf + 1, layer.init_state(2, 8))
    given = options | place | ({"state": state} if "state" in options else {})
    def forward(p, x, mask):
        return layer.apply(p, x, mask=mask if masked else None, **given)
    def loss(p, x, mask):
        return sum((leaf ** 2).sum() for leaf in jax.tree.leaves(forward(p, x, mask)))
    def slopes(p, x, mask):
        return jax.grad(loss, (0, 1))(p, x, mask)
    for run in (forward, slopes):
        one = quick_jit(run)(jax.device_get(p), x, mask)
        with jax.set_mesh(mesh):
            args = p, *jax.device_put((x, mask), tokens)
            program = quick_jit(run).lower(*args).compile()
        many = program(*args)
        close = lambda a, b: float(abs(np.asarray(a) - np.asarray(b)).max() / abs(np.asarray(b)).max())
        found.append({
            "run": f"{run.__name__} masked={masked} {layer} {options}",
            "forward": run is forward,
            "kinds": [one.kind for one in collectives(program.as_text())],
            "bytes": [one.bytes for one in collectives(program.as_text())],
            "causal": "causal" in options,
            "state": [leaf.nbytes for leaf in jax.tree.leaves(state)],
            "gap": max(jax.tree.leaves(jax.tree.map(close, many, one))),
        })
print(json.dumps(found))
"""


def in_process(code: str, flags: str = "") -> Any:
    """What a program with eight devices prints last, as JSON."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        env=os.environ
        | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {flags}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def split() -> list[dict[str, Any]]:
    return in_process(SHARDED)


def test_split_tokens_meet_in_one_sum_of_the_states_and_move_nowhere(split: list[dict[str, Any]]) -> None:
    """Eight devices give the values and gradients of one, whole or frame by frame, naive and lean."""
    for found in split:
        assert found["gap"] < 1e-5, found
        if not found["causal"]:
            assert set(found["kinds"]) == {"all-reduce"}, found
            assert not found["forward"] or len(found["kinds"]) == 1, found


def test_split_causal_tokens_go_on_where_the_parts_before_their_own_ended(
    split: list[dict[str, Any]],
) -> None:
    """Each device needs the states of the parts before its own, not their sum over all: one all-gather.

    It is of the eight states, whatever the number of tokens; a mask's counts, eight numbers a sequence, go
    beside it. Backwards the slopes of the starts are summed, and those of the parameters.
    """
    causal = [found for found in split if found["causal"]]
    assert len(causal) == 4
    for found in causal:
        sums, counts = (8 * size for size in found["state"])
        masked = "masked=True" in found["run"]
        gathered = [
            size for kind, size in zip(found["kinds"], found["bytes"], strict=True) if "gather" in kind
        ]
        assert sorted(gathered) == ([counts, sums] if masked else [sums]), found
        if found["forward"]:  # and the state after all tokens is the sum of these
            assert set(found["kinds"]) == {"all-gather"}, found
        else:
            assert set(found["kinds"]) == {"all-gather", "all-reduce"}, found


FRAMES_OF_TOKENS = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from pom_jax.nn import PoM
from pom_jax.training.sharding import make_mesh
from tests.layers import parameters
from tests.test_mixer_cost import array_shapes

tokens, found = 2048, []
mesh = make_mesh({"data": 1, "context": 8})
cut = NamedSharding(mesh, P(None, "context"))
x = jax.ShapeDtypeStruct((1, tokens, 8), jnp.float32, sharding=cut)
mask = jax.ShapeDtypeStruct((1, tokens), jnp.float32, sharding=cut)
for layer, options in (
    (PoM(reads=("own", "past")), {"causal": True}),
    (PoM(count="frames", implementation="lean", dtype=jnp.bfloat16), {"frames": (2, 3, 3) * (tokens // 8)}),
):
    def loss(p, x, mask):
        return (layer.apply(p, x, mask=mask, **options) ** 2).sum()
    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss, (0, 1))).lower(parameters(layer), x, mask).compile()
    found.append(array_shapes(program))
print(json.dumps([tokens, found]))
"""


def test_no_array_has_tokens_and_frames_where_their_numbers_grow_together() -> None:
    """Eight devices, each with an eighth of the tokens and with the states of all frames."""
    tokens, found = in_process(FRAMES_OF_TOKENS, "--xla_backend_optimization_level=0")
    assert len(found) == 2
    for shapes in found:
        assert any(tokens // 8 in shape for shape in shapes)
        assert all(sum(size >= tokens // 8 for size in shape) < 2 for shape in shapes)


GROWTH = """
import json
from benchmarks.communication import KINDS, sends
from pom_jax.training.sharding import make_mesh

mesh, width = make_mesh({"data": 1, "context": 8}), 192
def sizes(kind, *slopes):
    return [[one.bytes for one in sends(kind, n, width, mesh, slopes)] for n in (1024, 16384)]
print(json.dumps({
    "forward": [[one.kind for one in sends(kind, 1024, width, mesh, ())] for kind in KINDS[:2]],
    "PoM": [sizes(kind, 0, 1, 2) for kind in KINDS[:2]],
    "attention": sizes("attention", 1),
}))
"""


def test_a_layer_sends_no_more_for_more_tokens_and_attention_does() -> None:
    """From 1,024 to 16,384 tokens over eight devices, all slopes included, in a scanned stack of blocks."""
    found = in_process(GROWTH, "--xla_backend_optimization_level=0")
    assert found["forward"] == [["all-reduce"], ["all-reduce"]]
    for few, many in found["PoM"]:
        assert few == many, "nothing of the size of the tokens"
    few, many = found["attention"]
    assert many == [16 * size for size in few]
