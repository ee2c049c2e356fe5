"""What several rooms' tests start from."""

import pytest

from pom_jax.data import digits


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """The real digits as shards; a test that changes files works on a copy."""
    out = tmp_path_factory.mktemp("data") / "digits"
    digits.prepare(out)
    return out
