"""Rows are read, chosen and tokenised without being held in memory; those of an earlier run are found,
but never wrong ones."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.command import TINY
from runner.config.settings import DataSettings, TemplateSettings
from runner.core import code_digest
from runner.core.errors import ConfigError
from runner.data import encode, store
from runner.data.chat_template_check import apply_template
from runner.data.issue_list import SHOWN_ISSUES
from runner.data.prepare import Data, prepare
from runner.data.template import Renderer
from runner.models.model import byte_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def row(number: int, words: int = 20) -> dict[str, str]:
    said = " ".join(f"word{(number * 7 + place * place) % 997}" for place in range(words))
    return {"prompt": f"Question {number}?", "completion": f"Answer {number}: {said}"}


def jsonl(path: Path, rows: Iterator[dict] | list[dict]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def made(
    path: Any,
    max_length: int | None = 256,
    seed: int = 0,
    kind: Any = "completion",
    renderer: Renderer | None = None,
    template: dict | None = None,
    **data: Any,
) -> Data:
    settings = DataSettings(path=str(path), **data)
    if renderer is None:
        tokenizer, own = byte_tokenizer(), TemplateSettings(**(template or {}))
        apply_template(tokenizer, own)
        renderer = Renderer(tokenizer, own, settings.train_on)
    return prepare(settings, renderer, max_length, seed, kind)


def said(data: Data) -> Any:
    """Everything that is known of the rows, but whether they were found."""
    splits = [split for split in (data.train, data.eval) if split]
    records = [(split.record(), split.longest, split.first_seen) for split in splits]
    return records, [(list(split.rows), list(split.examples)) for split in splits], data.notes


# --- a second start ---------------------------------------------------------------------------------------


def test_a_second_run_finds_the_rows_and_is_the_same_run(cli: Callable, tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(40)])
    words = (*TINY, "data=file", f"data.path={rows}", "data.eval_split=0.2")
    first, second = (cli(*words, folder=name) for name in ("first", "second"))
    assert (first.code, second.code) == (0, 0)
    assert (first.record["rows_from_cache"], second.record["rows_from_cache"]) == (False, True)
    assert first.record["data"] == second.record["data"]
    assert first.record["digests"]["adapter"] == second.record["digests"]["adapter"]
    assert first.lines("samples.jsonl") == second.lines("samples.jsonl") != []


def test_found_rows_are_those_that_were_made(tmp_path: Path) -> None:
    rows = [*(row(number) for number in range(30)), *(row(number) for number in range(5)), row(99, 200)]
    rows.append({"prompt": "<|im_end|>", "completion": "odd"})
    file = jsonl(tmp_path / "rows.jsonl", rows)
    fresh, found = (made(file, eval_split=0.2, deduplicate=True) for _ in range(2))
    assert (fresh.cached, found.cached) == (False, True)
    assert said(fresh) == said(found) == said(made(file, eval_split=0.2, deduplicate=True, cache=False))
    assert fresh.train.dataset().to_list() == found.train.dataset().to_list()


@pytest.mark.parametrize("kind", ["preference", "unpaired_preference"])
def test_found_pairs_are_those_that_were_made(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(9)]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    fresh, found = (made(file, kind=kind, eval_split=0.3) for _ in range(2))
    assert found.cached
    assert said(fresh) == said(found)
    assert len(found.train.rows) == len(fresh.train.examples) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 128},
        {"split_seed": 1},
        {"template": {"system": "Be brief."}},
        {"template": {"chat_template": "{% for m in messages %}{{ m.content }}\n{% endfor %}"}},
        {"train_on": "all"},
        {"min_chars": 158},
        {"eval_split": 0.5},
        {"max_rows": 7},
        {"columns": {"prompt": "completion", "completion": "prompt"}},
    ],
    ids=str,
)
def test_other_settings_are_other_rows(tmp_path: Path, change: dict) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(20)])
    before = made(file, **{"eval_split": 0.2})
    after = made(file, **({"eval_split": 0.2} | change))
    assert not after.cached
    assert said(after) == said(made(file, **({"eval_split": 0.2, "cache": False} | change))) != said(before)


def test_other_bytes_of_the_same_size_and_time_are_other_rows(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(1), row(2)])
    made(file)
    when = file.stat()
    file.write_text(file.read_text().replace("Answer 1", "Answer 3"))
    os.utime(file, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert file.stat().st_size == when.st_size
    after = made(file)
    assert not after.cached
    assert after.train.examples[0].answer.startswith("Answer 3")


def test_another_tokenizer_is_other_rows(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(1)])
    made(file)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["word"])
    after = made(file, renderer=Renderer(tokenizer, TemplateSettings()))
    assert not after.cached
    assert any(max(each.input_ids) == len(tokenizer) - 1 for each in after.train.rows)


def test_a_template_that_says_the_date_is_rendered_again_the_next_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(1)])
    dated = {"chat_template": "{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}"}

    class Tomorrow(store.date):
        @classmethod
        def today(cls) -> Any:
            return cls(2999, 1, 1)

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = dated["chat_template"]
    renderer = Renderer(tokenizer, TemplateSettings())
    assert [made(file, renderer=renderer).cached for _ in range(2)] == [False, True]
    monkeypatch.setattr(store, "date", Tomorrow)
    assert not made(file, renderer=renderer).cached


def test_other_code_is_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(1)])
    made(file)
    own = tmp_path / "package"
    shutil.copytree(store.PACKAGE / "data", own / "data")
    monkeypatch.setattr(store, "PACKAGE", own)
    template = own / "data" / "template.py"
    code = template.read_text()
    words = code.replace("Render messages", "Write messages") + "# a comment\n"
    assert words.startswith('"""Write')
    for changed, cached in ((words, True), (f"{code}\nMORE = 1\n", False)):
        template.write_text(changed)
        code_digest._digest.cache_clear()  # a process reads its own code once
        assert made(file).cached is cached


# --- what is found is whole -------------------------------------------------------------------------------


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "flipped": _flip,
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["train.arrow", "eval.examples.arrow", "entry.json"])
def test_damaged_rows_are_made_again(tmp_path: Path, cache: Path, name: str, damage: str) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(20)])
    before = said(made(file, eval_split=0.2))
    [entry] = cache.iterdir()
    DAMAGES[damage](entry / name)
    again = made(file, eval_split=0.2)
    assert not again.cached
    assert again.notes == [f"the prepared rows in {entry} were damaged, and were prepared again"]
    assert said(dataclasses.replace(again, notes=[])) == before
    found = made(file, eval_split=0.2)
    assert (found.cached, found.notes) == (True, [])


def test_a_record_that_was_edited_is_not_believed(tmp_path: Path, cache: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(20)])
    made(file)
    [record] = cache.glob("*/entry.json")
    edited = record.read_text().replace(r"\"read\": 20", r"\"read\": 21")
    assert edited != record.read_text()
    record.write_text(edited)
    assert made(file).train.counts["read"] == 20


def test_rows_stay_readable_when_their_entry_is_removed(tmp_path: Path, cache: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(20)])
    data = made(file, eval_split=0.2)
    before = said(data)
    for entry in cache.iterdir():
        for part in entry.iterdir():
            part.unlink()
    assert said(data) == before


def test_files_that_change_while_they_are_read_are_refused(tmp_path: Path, cache: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(20)])

    class Slow(Renderer):
        def render(self, example: Any) -> Any:
            if example.source == 20:
                jsonl(file, [row(number) for number in range(20, 40)])
            return super().render(example)

    with pytest.raises(ConfigError, match="changed while they were read"):
        made(file, renderer=Slow(byte_tokenizer(), TemplateSettings()))
    assert list(cache.iterdir()) == []


def test_a_faster_process_does_no_harm(tmp_path: Path, cache: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(5)])

    class Overtaken(Renderer):
        def render(self, example: Any) -> Any:
            if example.source == 1:
                assert not made(file).cached
            return super().render(example)

    slow = made(file, renderer=Overtaken(byte_tokenizer(), TemplateSettings()))
    assert not slow.cached
    found = made(file)
    assert found.cached
    assert said(slow) == said(found)
    assert len(list(cache.iterdir())) == 1


# --- the folder -------------------------------------------------------------------------------------------


def test_without_cache_nothing_is_kept_or_found(tmp_path: Path, cache: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(1)])
    assert not made(file, cache=False).cached
    assert list(cache.iterdir()) == []
    made(file)
    assert not made(file, cache=False).cached


def test_the_rows_used_last_are_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [jsonl(tmp_path / f"{number}.jsonl", [row(number)]) for number in range(4)]
    monkeypatch.setattr(store, "_KEPT", 2)
    for file in files[:2]:
        made(file)
        time.sleep(0.02)
    assert made(files[0]).cached  # used again, so that the second is the oldest
    time.sleep(0.02)
    made(files[2])
    assert len(list(cache.iterdir())) == 2
    assert made(files[0]).cached
    assert not made(files[1]).cached
    monkeypatch.setattr(store, "_KEPT_BYTES", 1)
    made(files[3])
    assert len(list(cache.iterdir())) == 1
    assert made(files[3]).cached


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path: Path, cache: Path) -> None:
    old, young = cache / ".writing-old", cache / ".writing-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "train.arrow").write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    made(jsonl(tmp_path / "rows.jsonl", [row(1)]))
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize("limit", [2_000, 60_000], ids=["while reading", "while tokenising"])
def test_a_full_disk_is_refused_by_name(tmp_path: Path, cache: Path, limit: int) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(200)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(ConfigError) as caught:
            made(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert str(cache) in str(caught.value)
    assert "RUNNER_CACHE=FOLDER moves it" in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [row(1)])
    monkeypatch.setenv("RUNNER_CACHE", str(file / "cache"))
    with pytest.raises(ConfigError, match="RUNNER_CACHE=FOLDER moves it") as caught:
        made(file)
    assert str(file / "cache") in str(caught.value)


def test_a_tokenizer_that_cannot_be_known_is_never_found(tmp_path: Path, cache: Path) -> None:
    file, plain = jsonl(tmp_path / "rows.jsonl", [row(1)]), byte_tokenizer()
    own = type("Own", (type(plain),), {"__module__": "transformers_modules.own"})
    plain.__class__ = own
    renderer = Renderer(plain, TemplateSettings())
    assert [made(file, renderer=renderer).cached for _ in range(2)] == [False, False]
    assert list(cache.iterdir()) == []


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


@pytest.mark.parametrize("kind", ["completion", "unpaired_preference"])
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
def test_five_gigabytes_train_in_the_memory_of_a_small_file(tmp_path: Path) -> None:
    block = [row(number, 400) for number in range(2_000)]
    small, big = jsonl(tmp_path / "small.jsonl", block), tmp_path / "big.jsonl"
    count = 0
    with big.open("w") as stream:
        while stream.tell() < 5 * 10**9:
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
    assert much - little < 0.5 * 10**9
