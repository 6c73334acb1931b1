"""The block in which libraries are imported leaves nothing changed behind it."""

import gc
import importlib.metadata
import importlib.util
import sys

import pytest

from runner.core.process.libraries import importing


@pytest.fixture
def bare(monkeypatch):
    """A process that has imported no library yet."""
    for name in ("torch", "scipy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    gc.unfreeze()


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_block_changes_is_as_before_behind_it(bare, fails):
    asked = importlib.metadata.packages_distributions
    try:
        with importing():
            assert not gc.isenabled()
            assert importlib.util.find_spec("scipy") is None
            once = importlib.metadata.packages_distributions()
            assert importlib.metadata.packages_distributions() is once
            if fails:
                raise ImportError("no such library")
    except ImportError:
        assert fails
    assert gc.isenabled()
    assert "scipy" not in sys.modules
    assert importlib.util.find_spec("scipy") is not None
    assert importlib.metadata.packages_distributions is asked


def test_a_process_that_has_its_libraries_collects_as_ever(bare, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", gc)
    with importing():
        assert gc.isenabled()
