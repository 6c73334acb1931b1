"""What tests of models share."""

import pytest

from runner.models.fp8 import support


@pytest.fixture
def anywhere(monkeypatch):
    """Let any machine have a base in e4m3."""
    monkeypatch.setattr(support, "unsupported", lambda: None)
