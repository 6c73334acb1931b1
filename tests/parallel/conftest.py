"""Processes of a shared run that begin at once."""

import pytest

from parallel.forked import fork_followers


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process fork their followers."""
    fork_followers(monkeypatch)
