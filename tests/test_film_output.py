"""What is left of films when something goes wrong or is interrupted."""

from typing import Any

import numpy as np
import pytest

from pom_jax.errors import InputError
from tests.test_video_sampling import (
    ATTENTION,
    POM,
    PROMPTS,
    joined,
    tiny_generator,
)


class Stopped(Exception):
    """Of a progress that stops films."""


class Told:
    """Keeps what it is told, and stops films at a number of drawn frames."""

    def __init__(self, stop: int = -1):
        self.names: list[str] = []
        self.stop = stop

    def compiling(self, what: str) -> None:
        self.names.append(what)

    def compiled(self, seconds: float) -> None:
        del seconds

    def drawn(self, images: int, total: int) -> None:
        del total
        if images == self.stop:
            raise Stopped


TOO_MUCH = 1e39  # guidance beyond float32, so that frames are not finite


@pytest.mark.parametrize("model", [POM, ATTENTION])
def test_films_that_stop_within_a_frame_go_on_from_the_one_before(model: dict[str, Any]) -> None:
    """One of three batches has drawn its third frame; or that frame is not finite, and others are drawn."""
    generator = tiny_generator(**model)
    alone: dict[str, Any] = {"batch_size": 1}
    whole = generator.sample_array(PROMPTS, 4, **alone)
    stopped = generator.stream(PROMPTS, 4, progress=Told(stop=3 * 2 + 1), **alone)
    pieces = [next(stopped), next(stopped)]
    with pytest.raises(Stopped):
        next(stopped)
    state = pieces[-1].state
    assert state.frame == 2
    later = joined(generator.stream(None, 2, state=state, **alone))
    np.testing.assert_array_equal(np.concatenate([joined(pieces), later], axis=1), whole)
    with pytest.raises(InputError, match="the state after frame 1 is gone"):
        _ = pieces[0].state

    broken = generator.stream(None, 2, state=state, later_guidance=TOO_MUCH, **alone)
    with pytest.raises(InputError, match="frames 2 to 2 are not finite"):
        next(broken)
    begun = generator.stream(PROMPTS, 4, later_guidance=TOO_MUCH, **alone)
    first = next(begun)
    with pytest.raises(InputError, match="frames 1 to 1 are not finite"):
        next(begun)
    later = joined(generator.stream(None, 3, state=first.state, **alone))
    np.testing.assert_array_equal(later, whole[:, 1:])


def test_states_are_computed_for_frames_that_something_follows() -> None:
    generator, told = tiny_generator(**POM), Told()
    (picture,) = generator.stream(PROMPTS, 1, progress=told)
    assert told.names == ["sampler"]
    assert picture.state_bytes > 0
    assert told.names == ["sampler", "reader of finished frames"]
    list(generator.stream(PROMPTS, 2, steps=3, later_steps=1, progress=told))
    assert told.names[2:] == ["sampler of first frames", "sampler of later frames"]
