"""Samplers: from noise to data along a path, with any network.

A sampler first plans on the host, in float64, from the path and the times alone: one row of numbers for every
evaluation of the network. `sample` then scans those rows on the device. The network is compiled once,
whatever the number of steps and also where a step takes two evaluations.

The ODE samplers move x along the path's clock with its velocity (see `paths`), so they work on every path,
and every sampler takes every kind of prediction. A step that ends at clean data gives the data estimate.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax.diffusion.losses import Predict
from pom_jax.diffusion.paths import PREDICTIONS, Path, Predictions, convert_at
from pom_jax.diffusion.schedules import time_grid
from pom_jax.errors import InputError, choose

Row = Mapping[str, Any]


class Plan(NamedTuple):
    """What a sampler does: times [E] of its E evaluations, rows of numbers [E], and which end a step [E]."""

    times: np.ndarray
    rows: dict[str, np.ndarray]
    ends_step: np.ndarray


class Sampler(Protocol):
    """How to step. `update` sees what the network said at x and returns where to evaluate it next."""

    def plan(self, path: Path, times: np.ndarray) -> Plan:
        """Rows for the falling times [steps + 1]."""
        ...

    def memory(self, x: jax.Array) -> Any:
        """What `update` wants to remember, before the first evaluation."""
        ...

    def update(
        self, x: jax.Array, memory: Any, said: Predictions, row: Row, draw: Callable[[], jax.Array]
    ) -> tuple[jax.Array, Any]:
        """Next x [B, ...] and memory; `draw()` gives unit noise [B, ...]."""
        ...


def _one_per_step(times: np.ndarray, rows: dict[str, np.ndarray]) -> Plan:
    return Plan(times[:-1], rows, np.ones(len(times) - 1, bool))


@dataclasses.dataclass(frozen=True)
class Euler:
    """x + (change of the clock) v: strong order 1. On the flow path it is DDIM, with fewer roundings."""

    def plan(self, path: Path, times: np.ndarray) -> Plan:
        return _one_per_step(times, {"step": np.diff(path.clock(times))})

    def memory(self, x):
        return ()

    def update(self, x, memory, said, row, draw):
        return x + row["step"] * said.velocity, memory


@dataclasses.dataclass(frozen=True)
class Heun:
    """Euler's step, then again with the mean of the slopes at its ends: strong order 2, two evaluations each.

    A step that ends at clean data has no second slope: no network ever saw the velocity of data without noise
    (nor, predicting data, could it know it). N steps take 2 N - 1 evaluations then.
    """

    def plan(self, path: Path, times: np.ndarray) -> Plan:
        second = path.sigma(times[1:]) > 0
        step = np.diff(path.clock(times))
        rows = []
        for i, size in enumerate(step):
            rows.append((times[i], size, 0.0, not second[i]))
            if second[i]:
                rows.append((times[i + 1], size, 1.0, True))
        at, size, corrects, ends = (np.array(column) for column in zip(*rows, strict=True))
        return Plan(at, {"step": size, "corrects": corrects}, ends)

    def memory(self, x):
        return x, jnp.zeros_like(x)

    def update(self, x, memory, said, row, draw):
        start, slope = memory
        corrects = row["corrects"] > 0
        start = jnp.where(corrects, start, x)
        mean = jnp.where(corrects, (slope + said.velocity) / 2, said.velocity)
        return start + row["step"] * mean, (start, said.velocity)


@dataclasses.dataclass(frozen=True)
class DDIM:
    """Puts the estimates of data and noise together anew at the next time: strong order 1.

    With eta above 0 that share of the ancestral noise replaces noise of the estimate; eta = 1 draws from the
    posterior q(x_s | x_t, x), which is DDPM's ancestral sampling: weak order 1.
    """

    eta: float = 0.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta is the share of fresh noise, from 0 (DDIM) to 1 (DDPM); got {self.eta}")

    def plan(self, path: Path, times: np.ndarray) -> Plan:
        alpha, sigma = path.alpha(times), path.sigma(times)
        # `kept`: the share of the noise after a forward step that was there before it; 0 where there is none.
        kept = _ratio(alpha[:-1] * sigma[1:], alpha[1:] * sigma[:-1])
        fresh = self.eta * sigma[1:] * np.sqrt(np.clip(1 - kept**2, 0, 1))
        rest = np.sqrt(np.clip(sigma[1:] ** 2 - fresh**2, 0, None))
        return _one_per_step(times, {"data": alpha[1:], "noise": rest, "fresh": fresh})

    def memory(self, x):
        return ()

    def update(self, x, memory, said, row, draw):
        x = row["data"] * said.data + row["noise"] * said.noise
        return (x + row["fresh"] * draw() if self.eta > 0 else x), memory


@dataclasses.dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++(2M): the data estimate, extrapolated from two evaluations in log-SNR; strong order 2.

    The first step, and one that ends at clean data (infinite log-SNR), are of order 1, which is DDIM.
    """

    def plan(self, path: Path, times: np.ndarray) -> Plan:
        alpha, sigma = path.alpha(times), path.sigma(times)
        with np.errstate(divide="ignore"):
            log_snr = np.log(alpha) - np.log(sigma)
        finite = np.isfinite(log_snr)
        still = sigma[:-1] == 0
        keep = np.where(still, 1.0, _ratio(sigma[1:], sigma[:-1]))
        decay = _ratio(alpha[:-1] * sigma[1:], alpha[1:] * sigma[:-1])
        new = np.where(still, 0.0, alpha[1:] * (1 - decay))
        width = np.diff(np.where(finite, log_snr, 0.0))
        # Extrapolation needs this step and the one before it to have a width.
        known = finite[1:] & finite[:-1]
        both = np.append(False, known[1:] & known[:-1])
        lean = np.where(both, _ratio(width, 2 * np.append(1.0, width[:-1])), 0.0)
        return _one_per_step(times, {"keep": keep, "new": new, "lean": lean})

    def memory(self, x):
        return jnp.zeros_like(x)

    def update(self, x, memory, said, row, draw):
        estimate = said.data + row["lean"] * (said.data - memory)
        return row["keep"] * x + row["new"] * estimate, said.data


DIFFUSIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sigma": lambda t, sigma: sigma,
    "sigma_squared": lambda t, sigma: sigma**2,
    "sine": lambda t, sigma: np.sin(np.pi * t) ** 2,
}


@dataclasses.dataclass(frozen=True)
class SDE:
    """Euler-Maruyama for the reverse SDE with a diffusion coefficient of one's choice: weak order 1.

    Backwards along the clock s the marginals are kept by dx = (v - w/2 score) ds + sqrt(w) dW for every w of
    at least 0, with score = -eps / sigma (Ma et al. 2024, SiT, section 2.4); w = 0 is the ODE. Here
    w = churn * diffusion(t).

    Attributes:
        churn: how much noise is exchanged, above 0.
        diffusion: a name of `DIFFUSIONS`; all of them vanish with the noise, so the drift stays bounded.
    """

    churn: float = 1.0
    diffusion: str = "sigma"

    def __post_init__(self):
        choose("diffusion coefficient", self.diffusion, DIFFUSIONS)
        if not (np.isfinite(self.churn) and self.churn > 0):
            raise InputError(
                f"churn must be positive; got {self.churn}; without churn, take the Euler sampler"
            )

    def plan(self, path: Path, times: np.ndarray) -> Plan:
        sigma = path.sigma(times)
        step = np.diff(path.clock(times))
        w = self.churn * DIFFUSIONS[self.diffusion](times[:-1], sigma[:-1])
        rows = {"step": step, "pull": step * _ratio(w, 2 * sigma[:-1]), "fresh": np.sqrt(-step * w)}
        return _one_per_step(times, rows)

    def memory(self, x):
        return ()

    def update(self, x, memory, said, row, draw):
        return x + row["step"] * said.velocity + row["pull"] * said.noise + row["fresh"] * draw(), memory


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=b != 0)


SAMPLERS: dict[str, Sampler] = {
    "euler": Euler(),
    "heun": Heun(),
    "ddim": DDIM(),
    "ddpm": DDIM(eta=1.0),
    "dpm++2m": DPMSolver(),
    "sde": SDE(),
}

# A noise prediction says nothing about the data where there is no signal. Sampling with one starts where the
# signal's variance is this share: t = 0.999 on the linear path, as the authors' samplers do.
FIRST_SIGNAL = 1e-3


def first_time(path: Path, prediction: str) -> float:
    """Where sampling starts by default: 1, or for a noise prediction the last t with a signal to speak of."""
    if prediction != "noise":
        return 1.0
    t = np.linspace(0, 1, 10_001)
    return float(t[path.alpha(t) ** 2 >= FIRST_SIGNAL * (1 - 1e-9)][-1])


def _check_times(times: Any, path: Path, prediction: str) -> np.ndarray:
    grid = np.asarray(times, np.float64)
    if grid.ndim != 1 or len(grid) < 2 or not np.all(np.isfinite(grid)):
        raise InputError(f"times must be a row of at least two finite numbers; got shape {grid.shape}")
    if not (np.all(np.diff(grid) < 0) and grid[0] <= 1 and grid[-1] >= 0):
        raise InputError(f"times must fall strictly, from noise (at most 1) to data (at least 0); got {grid}")
    if prediction == "noise" and path.alpha(grid[:1])[0] == 0:
        raise InputError(
            f"times start at {grid[0]:g}, where a noise prediction says nothing about the data; "
            f"start a little later, for instance at {first_time(path, prediction):g}"
        )
    return grid


def _drawer(key: jax.Array | None, index: jax.Array, x: jax.Array) -> Callable[[], jax.Array]:
    def draw() -> jax.Array:
        if key is None:
            raise InputError("this sampler draws noise and needs a key, for instance jax.random.key(0)")
        if key.ndim == (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1):
            return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
        keys = jax.vmap(lambda k: jax.random.fold_in(k, index))(key)
        return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(keys)

    return draw


def sample(
    predict: Predict,
    key: jax.Array | None,
    noise: jax.Array,
    *,
    path: Path,
    prediction: str = "velocity",
    sampler: str | Sampler = "heun",
    steps: int = 50,
    times: Any = None,
    start: float | None = None,
    end: float = 0.0,
    grid: str = "uniform",
    shift: float = 1.0,
    clip: float | None = None,
    trajectory: bool = False,
) -> Any:
    """Takes noise to data with one scan over the evaluations of a network.

    Pure: wrap it in `jax.jit` to compile once and call often. All times are static.

    Args:
        predict: (x_t [B, ...], t [B]) -> [B, ...]; see `guidance.guide` for labels and guidance.
        key: for samplers that draw noise; one key, or [B] keys so that an example does not depend on its
            batch. None is enough for the others.
        noise: [B, ...] unit normal, float32 or float64; the state keeps its dtype.
        path, prediction: what the network was trained on.
        sampler: a name of `SAMPLERS`, or a sampler such as `DDIM(eta=0.5)`.
        steps, start, end, grid, shift: of `schedules.time_grid`; the start is `first_time` by default.
        times: the falling times [steps + 1] themselves, instead of those five.
        clip: bound on the data estimate's absolute value, for data with a known range.
        trajectory: also return x after each step.

    Returns:
        x [B, ...], or (x, trajectory [steps, B, ...]).

    Raises:
        InputError: unknown names, times or numbers out of range, a missing key.
    """
    stepper = choose("sampler", sampler, SAMPLERS) if isinstance(sampler, str) else sampler
    choose("diffusion.prediction", prediction, PREDICTIONS)
    if clip is not None and not clip > 0:
        raise InputError(f"clip bounds the data estimate and must be positive; got {clip}")
    if times is None:
        start = first_time(path, prediction) if start is None else start
        times = time_grid(steps, start=start, end=end, grid=grid, shift=shift)
    checked = _check_times(times, path, prediction)

    plan = stepper.plan(path, checked)
    sigma = path.sigma(checked)
    lands = (sigma[1:] == 0) & (sigma[:-1] > 0)
    columns = {
        "t": plan.times,
        "alpha": path.alpha(plan.times),
        "sigma": path.sigma(plan.times),
        "lands": lands[np.cumsum(plan.ends_step) - plan.ends_step],
        **plan.rows,
    }
    rows = {name: jnp.asarray(column, noise.dtype) for name, column in columns.items()}
    rows["index"] = jnp.arange(len(plan.times))

    def evaluate(state, row):
        x, memory = state
        value = predict(x, jnp.full(x.shape[:1], row["t"], x.dtype)).astype(x.dtype)
        said = convert_at(path, prediction, value, x, row["alpha"], row["sigma"])
        if clip is not None:
            said = convert_at(path, "data", jnp.clip(said.data, -clip, clip), x, row["alpha"], row["sigma"])
        x, memory = stepper.update(x, memory, said, row, _drawer(key, row["index"], x))
        x = jnp.where(row["lands"] > 0, said.data, x)
        return (x, memory), x if trajectory else None

    (x, _), passed = jax.lax.scan(evaluate, (noise, stepper.memory(noise)), rows)
    return x if passed is None else (x, passed[np.flatnonzero(plan.ends_step)])
