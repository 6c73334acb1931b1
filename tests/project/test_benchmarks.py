"""The table of the sweep benchmark: its arithmetic on given results, and its command line."""

import json
import subprocess
import sys

import pytest

from helpers.paths import ROOT

FOLDER = ROOT / "benchmarks"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import sweep_table

    return sweep_table


def result(cells: int, step: float, wall: float, gib: float = 2.0) -> dict:
    return {
        "cells": cells,
        "steps": 20,
        "step_seconds": step,
        "wall_seconds": wall,
        "peak_memory_bytes": int(gib * 2**30),
        "place": "a GPU, torch 2",
    }


def record(table, **sides) -> dict:
    row = {"model": "qwen3-4b", "quantization": "nf4", "batch": 1, "length": 500, "cells": 8}
    settings = {"steps": 20, "warmup": 6, "held_out": 8, "generation": False}
    return {"row": row, "settings": settings, "sides": sides, "break_even": {}}


def lines(text: str) -> list[list[str]]:
    """The cells of the table's lines, without its head."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_lines_of_a_row(table):
    sides = {
        "trl": result(1, step=0.25, wall=25.0, gib=2.0),
        "solo": result(1, step=0.125, wall=22.5, gib=1.5),
        "packed": result(8, step=0.4, wall=50.0, gib=3.0),
    }
    speed, wall, ahead, memory = lines(table.markdown([record(table, **sides)], wall_steps=500))
    assert speed[0] == "qwen3-4b nf4 1x500, 8 cells"
    assert speed[2:] == ["2,000", "4,000", "10,000", "5.00x", "2.50x"]  # packed: 8 x 500 / 0.4
    assert wall[2:] == ["8 x 25.0 = 200.0", "8 x 22.5 = 180.0", "50.0", "4.00x", "3.60x"]
    # 20 + 500 x 0.25, 20 + 500 x 0.125, 42 + 500 x 0.4
    assert ahead[2:] == ["8 x 145.0 = 1,160.0", "8 x 82.5 = 660.0", "242.0", "4.79x", "2.73x"]
    assert "extrapolated" in ahead[1]
    assert memory[2:] == ["2.00", "1.50", "3.00", "1.50x the memory", "2.00x the memory"]


def test_a_failed_side_is_said_and_the_others_are_kept(table):
    failed = {"error": "exit code 1", "log": "4b-1x500-packed.log", "tail": ["first", "out of memory"]}
    text = table.markdown([record(table, trl=result(1, 0.25, 25.0), packed=failed)], 500)
    speed, wall, *_ = lines(text)
    assert speed[2:] == ["2,000", "", "failed", "", ""]
    assert wall[2:] == ["8 x 25.0 = 200.0", "", "failed", "", ""]
    assert "packed: exit code 1 (4b-1x500-packed.log)" in text
    assert "out of memory" in text


def test_break_even(table):
    row = table.Row("qwen3-4b", "nf4", 1, 500, 8)
    steps = {1: 0.125, 2: 0.2, 4: 0.39, 8: 0.5}
    found, verdict = table.break_even(row, {cells: result(cells, step, 1) for cells, step in steps.items()})
    assert [(cells, round(rate)) for cells, rate, _, _ in found] == [
        (1, 4000),
        (2, 5000),
        (4, 5128),
        (8, 8000),
    ]
    assert [round(one, 2) for *_, one, _ in found] == [1.0, 1.25, 1.28, 2.0]
    assert [round(above, 2) for *_, above in found] == [1.0, 1.25, 1.03, 1.56]
    assert "nothing from 2 to 4 cells" in verdict
    assert "up to 2 cells" in table.break_even(row, {1: result(1, 0.125, 1), 2: result(2, 0.2, 1)})[1]


def test_numbers_of_devices(table):
    found = record(table) | {"devices": {"1": result(8, 0.5, 50.0), "2": result(8, 0.25, 40.0)}}
    one, two = lines(table.markdown([found], wall_steps=500))
    assert one == ["1", "8,000", "50.0", "1.00x", "290.0", "1.00x"]  # 40 + 500 x 0.5
    assert two == ["2", "16,000", "40.0", "1.25x", "160.0", "1.81x"]  # 35 + 500 x 0.25


def test_steady_step(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from common import steady_step

    # the steps take 9, 9, 1, 2, 30 seconds; the first two are warmup
    assert steady_step([9, 18, 19, 21, 51], warmup=2) == 2
    with pytest.raises(ValueError, match="leave none"):
        steady_step([9, 18], warmup=2)


def test_the_config_is_that_of_the_command(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from common import compose

    assert compose(["model=tiny", "lora.r=4"]).lora["r"] == 4


def test_the_table_of_quantised_bases(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from types import SimpleNamespace

    from quantization_distance import table as quantised

    near = {"bytes": 3 * 2**20, "kl": 0.0, "greedy_agreement": 1.0, "tokens": 64}
    far = near | {"bytes": 2**20, "kl": 0.0123, "greedy_agreement": 0.9}
    scores = {"exact_match": [0.5, 0.25], "eval_loss": [0.5, 0.7]}
    options = SimpleNamespace(model="m", steps=9, seeds="0,1")
    first, second = lines(quantised({"none": near | scores, "fp8": far | scores}, options))
    assert first[:4] == ["bf16", "3", "0.00e+00", "100.00%"]
    assert second == ["fp8", "1", "1.23e-02", "90.00%", "37.5%", "0.6000", "50% 0.5000, 25% 0.7000"]


@pytest.mark.slow
def test_templates_are_counted(tmp_path):
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    (tmp_path / "mine.jinja").write_text(turns + "{% if add_generation_prompt %}assistant:{% endif %}")
    script = [sys.executable, str(FOLDER / "templates.py"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 templates: all everyday shapes right" in done.stdout
    assert "0 of 1 templates: a shape that is wrong without a word" in done.stdout


def test_rates_differ(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from sweep_sides import _rate

    assert [_rate(0), _rate(1), _rate(10)] == ["1e-4", "1.1e-4", "2e-4"]
    assert len({float(_rate(number)) for number in range(16)}) == 16


def command(*words: str) -> subprocess.CompletedProcess[str]:
    script = str(FOLDER / "sweep_against_trl.py")
    return subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=60)


def test_help_and_mistakes():
    assert "--break-even" in command("--help").stdout
    wrong = command("--out", "x", "--rows", "4b-1x512,5b-1x512")
    assert wrong.returncode == 2
    assert "5b-1x512 is none of" in wrong.stderr
    assert "'0' is no number of devices" in command("--out", "x", "--devices", "1,0").stderr


def test_table_of_what_is_there(table, tmp_path):
    (tmp_path / "4b-1x500.json").write_text(json.dumps(record(table, trl=result(1, 0.25, 25.0))))
    done = command("--out", str(tmp_path), "--only-table", "--wall-steps", "100")
    assert done.returncode == 0, done.stderr
    assert "extrapolated to 100 steps" in (tmp_path / "table.md").read_text()


def test_devices_that_are_measured_one_after_the_other_stand_together(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    import sweep_against_trl

    monkeypatch.setattr(sweep_against_trl, "measure", lambda *_: result(16, step=0.1, wall=50.0))
    for devices in "12":
        words = ["--out", str(tmp_path), "--rows", "1.7b-1x512", "--devices", devices, "speed.compile=false"]
        assert sweep_against_trl.main(words) == 0
    assert set(json.loads((tmp_path / "1.7b-1x512.json").read_text())["devices"]) == {"1", "2"}


def test_engines_are_compared_with_the_first_of_their_cell(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import several_gpus

    def side(processes: int, rate: float, gib: float, loss: float) -> dict:
        return {
            "processes": processes,
            "step_seconds": 0.5,
            "tokens_per_second": rate,
            "peak_memory_bytes": int(gib * 2**30),
            "losses": [2.0, loss],
        }

    one, two = [cell for cell in several_gpus.CELLS if "ddp" in cell.sides][:2]
    found = {
        (one, "none"): side(1, 1000.0, 4.0, 1.0),
        (one, "ddp"): side(2, 1900.0, 3.0, 1.25),
        (two, "ddp"): {"error": "exit code 1: broken"},
    }
    text = several_gpus.markdown(found)
    first, second = lines(text)
    assert [first[index] for index in (1, 2, 5, 7, 8)] == ["none", "1", "", "", ""]
    assert [second[index] for index in (1, 2, 5, 6, 7, 8)] == [
        "ddp",
        "2",
        "1.90x",
        "3.00",
        "0.75x",
        "2.5e-01",
    ]
    assert f"- {two.name} ddp: exit code 1: broken" in text
    for mistake in (["--cells", "4b"], ["--sides", "zero"], ["--processes", "1"]):
        with pytest.raises(SystemExit, match="2"):
            several_gpus.main(["--out", "results", *mistake])
