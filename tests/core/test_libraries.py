"""The block in which libraries are imported leaves nothing changed behind it."""

import gc
import importlib.metadata
import sys

import pytest

from runner.core.process.libraries import importing


@pytest.fixture
def bare(monkeypatch):
    """A process that has imported no library yet."""
    monkeypatch.delitem(sys.modules, "trl", raising=False)
    yield
    gc.unfreeze()


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_block_changes_is_as_before_behind_it(bare, fails):
    asked = importlib.metadata.packages_distributions
    try:
        with importing("trl"):
            assert not gc.isenabled()
            once = importlib.metadata.packages_distributions()
            assert importlib.metadata.packages_distributions() is once
            if fails:
                raise ImportError("no such library")
    except ImportError:
        assert fails
    assert gc.isenabled()
    assert importlib.metadata.packages_distributions is asked


def test_a_process_that_has_its_libraries_collects_as_ever(bare, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", gc)
    with importing("trl"):
        assert gc.isenabled()
