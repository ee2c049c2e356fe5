"""How first frames of a film are drawn, and how those behind finished ones, which tell what to go on with."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pom_jax.diffusion.guidance import check_guidance
from pom_jax.diffusion.schedules import time_grid
from pom_jax.errors import InputError


class FrameSettings(NamedTuple):
    """Of some frames of a film.

    Attributes:
        guidance: scale in the usual sense.
        steps: of the sampler.
    """

    guidance: float
    steps: int


def film_settings(
    own: Mapping[str, Any],
    guidance: float | None = None,
    later_guidance: float | None = None,
    steps: int | None = None,
    later_steps: int | None = None,
) -> tuple[FrameSettings, FrameSettings]:
    """Settings of a film's first frames, and of those that are drawn behind finished ones.

    Later frames are hardly in doubt: few steps do, and a strong guidance makes a film drift.

    Args:
        own: `config.sampling` of the run, for what is not given; where its `later_guidance` or `later_steps`
            is -1, or missing, later frames are drawn as first ones.
        guidance, steps: of first frames.
        later_guidance, later_steps: of later ones.

    Raises:
        InputError: a scale that is negative or not finite, or steps below 1.
    """

    first = FrameSettings(
        own["guidance"] if guidance is None else guidance, own["steps"] if steps is None else steps
    )

    def behind(name: str, given: Any) -> Any:
        kept = own.get(f"later_{name}", -1) if given is None else given
        return getattr(first, name) if given is None and kept == -1 else kept

    later = FrameSettings(behind("guidance", later_guidance), behind("steps", later_steps))
    for prefix, settings in (("", first), ("later_", later)):
        try:
            check_guidance(settings.guidance)
            time_grid(settings.steps)  # refuses what are no steps
        except InputError as error:
            raise InputError(f"{prefix}{error}") from error  # they begin with the setting's name
    return first, later
