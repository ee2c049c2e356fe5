"""Steps that wait for data are counted, and the process that others wait for is named."""

from pom_jax.training.pace import Pace, slow_lines


def test_a_step_that_mostly_waits_for_data_is_a_stall() -> None:
    pace = Pace()
    pace.add(whole=1.0, waited=0.4, host=0.1)
    assert pace.stalls == 0
    pace.add(whole=1.0, waited=0.6, host=0.1)
    assert pace.stalls == 1
    assert pace.compare() == [], "one process waits for no other"


def test_a_process_is_slow_beside_the_usual_one() -> None:
    assert slow_lines([1.0, 1.2, 1.1, 0.9], 100, 10.0) == []
    assert slow_lines([0.01, 0.9, 0.01], 100, 10.0) == [], "the others hardly notice"
    (line,) = slow_lines([1.0, 1.2, 5.0, 0.9], 100, 10.0)
    assert line.startswith("warning: process 2 is slow: 5.0 s of the 10.0 s of the last 100 steps")
    assert [line.split()[2] for line in slow_lines([0.1, 4.0], 100, 10.0)] == ["1"], "of two the busier one"
