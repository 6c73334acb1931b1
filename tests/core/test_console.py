"""What the terminal is given of texts that come from a file."""

from __future__ import annotations

import io

from rich.console import Console

from runner.core import console
from runner.core.errors import Issue


def test_a_message_of_a_million_letters_is_shown_without_its_middle(capsys) -> None:
    console.config_errors([Issue("a.jsonl:1", f"the role {'x' * 10**6!r} is unknown", "allowed: user")])
    err = capsys.readouterr().err
    assert len(err) < 5000
    assert "a.jsonl:1: the role 'xxx" in err
    assert "more ... xxx" in err
    assert err.rstrip().endswith("xxx' is unknown\n      allowed: user")


def test_tables_cut_nothing_off(capsys) -> None:
    path = "outputs/2026-11-30/" + "a-long-name/" * 12 + "report.html"
    table = console.Table()
    table.add_column("GiB", justify="right")
    table.add_column("report")
    table.add_row("11.25", path)
    console.out.print(table)
    assert path in capsys.readouterr().out
    narrow = io.StringIO()
    Console(file=narrow, width=20).print(table)
    assert path in "".join(line[7:].strip() for line in narrow.getvalue().splitlines()[1:])
    assert "11.25" in narrow.getvalue()
