"""Rows are read, chosen and tokenised without being held in memory, by one process or several."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.command import TINY
from helpers.kept_rows import jsonl, made, row, said
from runner.config.settings import TemplateSettings
from runner.core.errors import ConfigError
from runner.data import encode
from runner.data.issue_list import SHOWN_ISSUES
from runner.data.prepare import Data
from runner.data.template import Renderer
from runner.models.model import byte_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


# --- many rows --------------------------------------------------------------------------------------------


def test_mistakes_of_many_rows_are_counted_and_the_first_are_named(
    cli: Callable, tmp_path: Path, capsys: Any
) -> None:
    bad = ['{"prompt": "x"}' if number % 2 else "{" for number in range(5000)]
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row(0)), *bad]))
    run = cli(*TINY, "data=file", "data.path=rows.jsonl")
    told = capsys.readouterr()
    text = "".join((told.out + told.err).split())
    assert run.code == 2
    assert f"rows.jsonl:{SHOWN_ISSUES + 1}:" in text
    assert f"rows.jsonl:{SHOWN_ISSUES + 2}:" not in text
    assert f"and{5000 - SHOWN_ISSUES}moreissues" in text


# --- several processes ------------------------------------------------------------------------------------

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TURNS = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture
def three_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes prepare whatever has more than a few rows."""
    monkeypatch.setattr(encode, "_WORKER_BYTES", 1000)
    monkeypatch.setattr(encode, "_BATCH_ROWS", 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)


@pytest.mark.parametrize("kind", ["completion", pytest.param("unpaired_preference", marks=pytest.mark.slow)])
def test_several_processes_prepare_the_same(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(number, 5 + number % 60) for number in range(150)]
    rows[40] = rows[140] = {"prompt": "<|im_end|>", "completion": "odd"}
    if kind != "completion":
        rows = [
            {"prompt": r["prompt"], "chosen": r["completion"], "rejected": f"no {n}"}
            for n, r in enumerate(rows)
        ]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    options = {"kind": kind, "eval_split": 0.2, "max_tokens": 240, "cache": False}
    alone = made(file, **options)
    request.getfixturevalue("three_workers")
    used: list[int | None] = []
    choose = encode._workers
    monkeypatch.setattr(encode, "_workers", lambda rows: used.append(choose(rows)) or used[-1])
    together = made(file, **options)
    assert used == [3, 3]
    assert said(together) == said(alone)
    assert together.train.counts["more than max_tokens"] > 0
    assert together.train.first_seen


def test_issues_of_several_processes_are_those_of_one(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = byte_tokenizer()
    refusal = "{% if '3' not in messages[0].content %}{{ raise_exception('no threes') }}{% endif %}"
    tokenizer.chat_template = refusal + str(tokenizer.chat_template)
    renderer = Renderer(tokenizer, TemplateSettings())
    file = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(150)])
    found = []
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            made(file, renderer=renderer)
        found.append([str(issue) for issue in caught.value.issues])
        request.getfixturevalue("three_workers")
    assert found[0] == found[1]
    assert "rejects 117 of 150 examples" in found[0][0]  # 33 of the numbers to 149 have a 3
    assert found[0][1] == f"{file}:1: the template rejects it: no threes"
    assert len(found[0]) == SHOWN_ISSUES + 2


@pytest.mark.slow
@pytest.mark.usefixtures("three_workers")
def test_a_template_that_loops_ends_in_every_process(tmp_path: Path, cache: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(150)])
    template = "{% if messages[0].content == 'Question 149?' %}" + LOOP + "{% endif %}" + TURNS
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        made(file, template={"chat_template": template})
    assert [issue.where for issue in caught.value.issues] == ["template.chat_template"]
    assert "it takes more than 5 seconds" in str(caught.value)
    assert time.monotonic() - began < 30
    assert list(cache.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: no other processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_all_processes(tmp_path: Path, cache: Path, number: signal.Signals) -> None:
    file = jsonl(tmp_path / "rows.jsonl", (row(number, 100) for number in range(30_000)))
    words = ("recipe=inspect", "model=tiny", "data=file", f"data.path={file}", "output_dir=run")
    process = subprocess.Popen([sys.executable, "-m", "runner", *words], cwd=tmp_path, stderr=subprocess.PIPE)
    children: list[psutil.Process] = []
    while len(children) < 3:  # two that map, and the one that holds the queue between
        assert process.poll() is None
        time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
    time.sleep(0.5)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    if number != signal.SIGKILL:
        assert process.returncode == 75, told.decode()[-3000:]
        assert b"Traceback" not in told
        assert list(cache.iterdir()) == []


# --- memory ---------------------------------------------------------------------------------------------

WRITERS = {
    "jsonl": jsonl,
    "csv": lambda path, rows: path.write_text(
        "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows)
    ),
    "parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(list(rows)), path),
}


@pytest.mark.parametrize(
    "kind", ["jsonl", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("csv", "parquet"))]
)
def test_rows_are_not_held_in_memory(tmp_path: Path, kind: str) -> None:
    peaks, few = {}, {"eval_max_rows": 5, "max_rows": 50}
    for count in (1_000, 4_000):
        file = tmp_path / f"{count}.{kind}"
        WRITERS[kind](file, (row(number, 40) for number in range(count)))
        peaks[count], data = _traced(file, clean=True, deduplicate=True, eval_split=0.05, **few)
        assert data.train.counts["read"] == count
    # a row held as objects is more than a kilobyte; its numbers and digests are a tenth of that
    assert (peaks[4_000] - peaks[1_000]) / 3_000 < 300


@pytest.mark.slow
def test_tokens_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {}
    monkeypatch.setattr(encode, "_BATCH_ROWS", 100)
    for count in (300, 1_200):
        file = jsonl(tmp_path / f"{count}.jsonl", (row(number, 40) for number in range(count)))
        peaks[count], data = _traced(file)
        assert len(data.train.rows) == count
    # a row's 256 token ids and labels are four kilobytes in lists
    assert (peaks[1_200] - peaks[300]) / 900 < 300


def _traced(file: Path, **options: Any) -> tuple[int, Data]:
    """The most bytes of Python objects at any time while a file is prepared."""
    made(jsonl(file.with_name("first.jsonl"), [row(1)]))  # whatever is imported or built once
    tracemalloc.start()
    try:
        data = made(file, **options)
        return tracemalloc.get_traced_memory()[1], data
    finally:
        tracemalloc.stop()


_MEASURED = """
import resource, sys
from runner.__main__ import main
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""


def _peak(folder: Path, file: Path, name: str) -> tuple[int, dict[str, Any]]:
    """Peak resident bytes of a training run on a file, and its run.json."""
    options = ("data.max_rows=2000", "data.eval_max_rows=4", "data.eval_split=0.001", "data.clean=true")
    words = ("recipe=sft", "data=file", f"data.path={file}", "data.deduplicate=true", *options)
    tiny = ("model=tiny", "trainer.precision=fp32", "trainer.max_steps=2", "trainer.max_length=512")
    command = [sys.executable, "-c", _MEASURED, *words, *tiny, "generation.samples=2", f"output_dir={name}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((folder / name / "run.json").read_text())
    return int(done.stdout.rsplit("peak", 1)[1]), record


@pytest.mark.slow
def test_two_gigabytes_train_in_the_memory_of_a_small_file(tmp_path: Path) -> None:
    block = [row(number, 400) for number in range(2_000)]
    small, big = jsonl(tmp_path / "small.jsonl", block), tmp_path / "big.jsonl"
    count = 0
    with big.open("w") as stream:
        while stream.tell() < 2 * 10**9:
            lines = (json.dumps(each | {"prompt": f"Question {count}-{n}?"}) for n, each in enumerate(block))
            stream.write("\n".join(lines) + "\n")
            count += len(block)
    little, _ = _peak(tmp_path, small, "small")
    try:
        much, record = _peak(tmp_path, big, "big")
    finally:
        big.unlink()
    print(f"peak {much / 1e9:.2f} GB against {little / 1e9:.2f} GB, {record['times']}")
    train = record["data"]["train"]
    assert record["status"] == "completed"
    assert train["rows"] == 2000
    assert train["counts"]["read"] == count
    assert train["counts"]["over the row limit"] + train["counts"]["held out"] + 2000 == count
    assert much - little < 0.2 * 10**9  # a tenth
