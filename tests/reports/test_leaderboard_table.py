"""The leaderboard as people and programs read it: the table of the terminal and ``leaderboard.csv``."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from helpers.sweep_folder import cell, make_sweep, repeats
from runner.reports.leaderboard import leaderboard
from runner.reports.sweep_report import write_sweep_report
from runner.reports.table import print_leaderboard


def test_the_csv_has_a_line_a_group_with_plain_numbers(tmp_path: Path) -> None:
    size = {"trainable_parameters": 4884480}
    cells = [
        *repeats("lora.r=8,x='a b'", 0.5, 0.6, metrics=size, lora={"r": 8, "lora_alpha": 16}),
        cell("lora.r=16,x=y", status="failed", error={"message": "one,\ntwo"}),
    ]
    board = leaderboard(make_sweep(tmp_path, cells))
    file = board.write(tmp_path)
    with file.open(encoding="utf-8", newline="") as stream:
        first, second = csv.DictReader(stream)
    assert file.read_text().count("\n") == 3
    assert (first["rank"], first["lora.r"], first["x"], first["scale"]) == ("1", "8", "'a b'", "2")
    assert float(first["eval_loss"]) == pytest.approx(0.55)
    assert float(first["eval_loss_sd"]) == pytest.approx(0.1 / math.sqrt(2))
    assert (first["eval_loss_n"], first["trainable_parameters"], first["seconds"]) == ("2", "4884480", "10")
    assert (first["within_noise"], first["best_cell"]) == ("best", "lora.r=8,x='a b',seed=1")
    assert (second["rank"], second["status"], second["eval_loss"]) == ("", "failed", "")
    assert second["reason"] == "before the first step: one,"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "leaderboard.csv",
        "sweep.json",
    ]


def test_the_table_is_plain_and_narrow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = []
    for rank in (8, 16):
        for rate in ("1e-4", "3e-4"):
            for rslora in ("true", "false"):
                values = f"lora.r={rank},trainer.learning_rate={rate},lora.use_rslora={rslora}"
                facts = {"exact_match_after": 0.9, "trainable_parameters": rank * 10**6}
                lora = {"r": rank, "lora_alpha": 16}
                cells += repeats(values, 0.5 + rank / 100, 0.51 + rank / 100, metrics=facts, lora=lora)
    error = {"type": "RuntimeError", "message": "[bold]" + "long " * 60}
    cells.append(cell("lora.r=32,trainer.learning_rate=1,lora.use_rslora=true", status="failed", error=error))
    print_leaderboard(leaderboard(make_sweep(tmp_path, cells)))
    text = capsys.readouterr().out
    table, _, below = text.partition("mean ± standard deviation")
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in text
    assert " best" in next(line for line in lines if line.lstrip().startswith("1 "))
    assert sum("≈ best" in line for line in lines) == 3
    assert "0.5850 ± 0.0071" in table
    assert "failed" in lines[-5] + lines[-4] + lines[-3]
    assert "before the first step: RuntimeError: [bold]long" in table
    assert "two-sided t test" in below


def test_the_table_has_twenty_rows_at_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell(f"lora.r={n}", n / 10) for n in range(1, 31)]
    error = {"message": "no"}
    print_leaderboard(leaderboard(make_sweep(tmp_path / "a", cells)))
    text = capsys.readouterr().out
    assert "and 10 more in leaderboard.csv" in text
    assert "noise is unknown" in text
    cells += [cell(f"lora.r={n}", status="failed", error=error) for n in range(31, 64)]
    print_leaderboard(leaderboard(make_sweep(tmp_path / "b", cells)))
    text = capsys.readouterr().out
    assert "and 11 more in leaderboard.csv" in text
    assert "failed  33  before the first step: no" in text


def test_cells_made_by_other_code_are_marked_and_the_mark_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked = {"other_code": True}
    cells = [
        cell("a=1", 0.3, entry=marked),
        *repeats("a=2", 0.4),
        cell("a=2,seed=1", 0.41, group="a=2", entry=marked),
        cell("a=3", 0.5),
    ]
    board = leaderboard(make_sweep(tmp_path / "marked", cells))
    print_leaderboard(board)
    text = capsys.readouterr().out
    marks = [line.rstrip() for line in text.splitlines() if "0.3000" in line or "0.4050" in line]
    assert marks[0].endswith("best, other code")
    assert marks[1].endswith("1 other code")
    assert text.count("sweep.redo=code") == 1
    with board.write(tmp_path).open(encoding="utf-8", newline="") as stream:
        assert [line["other_code"] for line in csv.DictReader(stream)] == ["1", "1", "0"]
    page = write_sweep_report(tmp_path / "marked").read_text(encoding="utf-8")
    assert page.count("sweep.redo=code") == 1
    assert "<small>other code</small>" in page
    assert "<small>1 other code</small>" in page
    plain = make_sweep(tmp_path / "plain", [cell("a=1", 0.5), cell("a=2", 0.6)])
    print_leaderboard(leaderboard(plain))
    assert "other code" not in capsys.readouterr().out
    assert "sweep.redo=code" not in write_sweep_report(plain).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"cells": 3, "axes": [], "jobs": {}}', '{"cells": [1, {}]}']
)
def test_a_folder_that_is_no_sweep_has_no_rows(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    board = leaderboard(tmp_path)
    print_leaderboard(board)
    assert board.rows == []
    assert board.best is None
    assert "no cells" in capsys.readouterr().out
    assert board.write(tmp_path).read_text().startswith("rank,group,status")
