"""Position tables and their resampling."""

import re

import jax.numpy as jnp

from pom_jax.diffusion.paths import FlowPath
from pom_jax.diffusion.schedules import resolution_shift, shift_time
from pom_jax.nn.embeddings import dit_positions, odd_harmonics, phased_harmonics, resize_positions
from tests.golden.case import Case, Check, Findings, LeftOut


def harmonics(case: Case) -> Findings:
    """Odd harmonics; the official code returns a narrower table when 4 does not divide the width."""
    for h, w, d in case.meta["call"]["shapes"]:
        name = f"h{h}_w{w}_d{d}"
        if d % 4:
            yield LeftOut(name, f"a width of {d} is an error here: the official table is {d // 4 * 4} wide")
            continue
        ours = odd_harmonics(h, w, d)[None]
        yield Check(f"out/{name}", ours, case.arrays[f"out/{name}"], case.tolerance("out"))


def dit_table(case: Case) -> Findings:
    """The table of MAE and DiT at its native size."""
    for name, official in case.group("out").items():
        d, side = (int(n) for n in re.findall(r"\d+", name))
        ours = dit_positions(side, side, d, side).reshape(side * side, d)
        yield Check(f"out/{name}", ours, official, case.tolerance("out"))


def resampled(case: Case) -> Findings:
    """Learned tables on other grids: integer enlargements and arbitrary shapes."""
    native, registers = case.meta["call"]["n_patches"], case.meta["call"]["n_registers"]
    tables = {k: jnp.asarray(v[0]) for k, v in case.group("in").items()}
    width = tables["pos_emb"].shape[-1]
    for name, official in case.group("out").items():
        source, size = re.fullmatch(r"(pos_emb|cond_pos_emb)_(.*)", name).groups()  # pyrefly: ignore
        scale = size.removeprefix("scale")
        rows, columns = [native * int(scale)] * 2 if scale != size else map(int, size.split("x"))
        first = registers if source == "cond_pos_emb" else 0
        table = tables[source][first:].reshape(native, native, width)
        resized = resize_positions(table, rows, columns).reshape(-1, width)
        ours = jnp.concatenate([tables[source][:first], resized])[None]
        yield Check(f"out/{name}", ours, official, case.tolerance("out"))


def later_positions_and_shift(case: Case) -> Findings:
    """The later position formula and the time shift of large latents."""
    a = case.meta["args"]
    ours = phased_harmonics(a["h"], a["w"], a["d"])[None]
    yield Check("out/sincos_2d", ours, case.arrays["out/sincos_2d"], case.tolerance("out"))
    t = jnp.asarray(case.arrays["in/t"]) / 1000
    shifted = shift_time(t, resolution_shift(a["latent_size"]))
    yield Check("out/t_rescaled", shifted * 1000, case.arrays["out/t_rescaled"], case.tolerance("out"))
    ones = jnp.ones((len(t), 1, 1, 1))
    noised = FlowPath().add_noise(ones, 3 * ones, shifted)
    yield Check("out/noised", noised, case.arrays["out/noised"], case.tolerance("out"))
