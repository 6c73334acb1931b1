"""Prepared rows are found by the next run of the same data, whole or not at all, in a folder of some size."""

import dataclasses
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.command import TINY
from helpers.kept_rows import jsonl, made, row, said
from runner.config.settings import TemplateSettings
from runner.core import code_digest
from runner.core.errors import ConfigError
from runner.data import store
from runner.data.template import Renderer
from runner.models.model import byte_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


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
@pytest.mark.slow
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
@pytest.mark.slow
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
