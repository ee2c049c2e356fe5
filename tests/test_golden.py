"""Parity with the authors' code on the kept subset, and that the runner notices a difference."""

import numpy as np
import pytest

from tests.golden import run

CASES = sorted(run.DATA.glob("*.npz"))


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.smoke] * p.stem.startswith("homm_"), id=p.stem) for p in CASES],
)
def test_agrees_with_the_authors(path):
    result = run.run_case(path)
    assert result.status == "pass", result.line


def test_subset_is_small_and_has_every_covered_family():
    assert sum(path.stat().st_size for path in CASES) <= 2 * 2**20
    for pattern, adapter in run.ADAPTERS:
        if callable(adapter) and pattern != "sampler_dih":  # a large file: run.py DIR covers it
            assert any(path.match(f"{pattern}.npz") for path in CASES), pattern


@pytest.fixture
def tampered(tmp_path):
    """A folder with a case that is right, the same with one value off, and a case of an unknown kind."""
    source = run.DATA / "homm_hom_o1_e1_self.npz"
    with np.load(source) as data:
        arrays = dict(data)
    np.savez(tmp_path / "homm_right.npz", **arrays)
    arrays["grad/param/se_proj.bias"][0] *= 1.001
    np.savez(tmp_path / "homm_wrong.npz", **arrays)
    np.savez(tmp_path / "unheard_of.npz", **arrays)
    return tmp_path


def test_runner_reports_what_differs_and_what_is_not_covered(tampered, capsys):
    assert run.main([str(tampered)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 passed, 1 failed, 1 not covered"
    assert any("fail  homm_wrong" in line for line in lines)
    assert any("grad/param/se_proj.bias: error" in line for line in lines)
    assert any("unheard_of" in line for line in lines)


def test_runner_ends_well_when_nothing_fails(tampered, capsys):
    (tampered / "homm_wrong.npz").unlink()
    assert run.main([str(tampered)]) == 0
    assert capsys.readouterr().out.endswith("1 passed, 0 failed, 1 not covered\n")


def test_runner_refuses_a_folder_without_cases(tmp_path, capsys):
    assert run.main([str(tmp_path / "nowhere")]) == 2
    assert "no .npz case" in capsys.readouterr().err


def test_nan_and_wrong_shapes_are_differences():
    from tests.golden.case import Check

    assert Check("x", np.array([np.nan, 1.0]), np.ones(2), 1e-3).error == np.inf
    assert Check("x", np.ones(3), np.ones(2), 1e-3).error == np.inf
    assert Check("x", np.array([0.0, 2.1]), np.array([0.0, 2.0]), 1e-3).error == pytest.approx(0.05)
