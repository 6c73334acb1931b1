"""What the terminal is given of texts that come from a file."""

from __future__ import annotations

from runner.core import console
from runner.core.errors import Issue


def test_a_message_of_a_million_letters_is_shown_without_its_middle(capsys) -> None:
    console.config_errors([Issue("a.jsonl:1", f"the role {'x' * 10**6!r} is unknown", "allowed: user")])
    err = capsys.readouterr().err
    assert len(err) < 5000
    assert "a.jsonl:1: the role 'xxx" in err
    assert "more ... xxx" in err
    assert err.rstrip().endswith("xxx' is unknown\n      allowed: user")
