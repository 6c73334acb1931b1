"""Which files a path means: splits of a folder by their names, saved data sets, tables by their separator."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.prepared import jsonl, prepared, refusal, trained


def rows(*answers: str) -> list[dict[str, str]]:
    return [{"prompt": f"ask {answer}", "completion": answer} for answer in answers]


def folder(tmp_path: Path, *names: str) -> Path:
    """A folder of files with a row each, whose answer is the file's name."""
    for name in names:
        file = tmp_path / "rows" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        jsonl(file, *rows(name))
    return tmp_path / "rows"


SPLITS: dict[str, tuple[list[str], list[str]]] = {
    "names": (["train.jsonl", "test.jsonl", "validation.jsonl"], ["train.jsonl"]),
    "parts": (
        ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"],
        ["train-"],
    ),
    "folders": (["train/a.jsonl", "dev/a.jsonl"], ["train/"]),
    "within names": (["my_train.jsonl", "my.val.jsonl"], ["my_train"]),
    "held-out rows only beside others": (["a.jsonl", "b.jsonl", "eval.jsonl"], ["a.", "b."]),
    "held-out rows alone": (["test.jsonl"], ["test"]),
    "no splits": (["a.jsonl", "b.ndjson"], ["a.", "b."]),
    "words in words": (["contest.jsonl", "trained.jsonl"], ["contest", "trained"]),
    "two splits in one name": (["train.jsonl", "train_eval.jsonl", "train/test/a.jsonl"], ["train.jsonl"]),
    "sets": (["trainset.jsonl", "testset.jsonl", "x_holdout.jsonl"], ["trainset"]),
    "training rows and others": (["train.jsonl", "more.jsonl"], ["more", "train"]),
    "subfolders": (["a.jsonl", "more/b.jsonl", "more/still/c.jsonl"], ["a.", "more/b", "more/still/c"]),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", SPLITS)
def test_splits_of_a_folder_are_told_apart_by_their_names(tmp_path: Path, case: str) -> None:
    names, read = SPLITS[case]
    path = folder(tmp_path, *names, ".hidden/x.jsonl", "__pycache__/y.jsonl")
    data = prepared(path)
    assert len(trained(data.train)) == len([n for n in names if n.startswith(tuple(read))])
    assert all(name.startswith(tuple(read)) for name in trained(data.train))
    record = data.train.record()["sources"][0]
    assert record["files"] == sorted(trained(data.train))
    left = sorted(set(names) - set(trained(data.train)))
    if case == "held-out rows alone":
        assert data.notes == [f"{path}: all its files are other splits by their names: test"]
        return
    assert [note for note in data.notes if f"not read: {left}" in note] == data.notes
    assert len(data.notes) == bool(left)


def test_the_same_folder_holds_the_held_out_rows(tmp_path: Path) -> None:
    path = folder(tmp_path, "train.jsonl", "test.jsonl", "validation.jsonl")
    data = prepared(path, eval_path=str(path))
    assert (trained(data.train), trained(data.eval)) == (["train.jsonl"], ["validation.jsonl"])
    path = folder(tmp_path / "two", "train.jsonl", "test.jsonl")
    assert trained(prepared(path, eval_path=str(path)).eval) == ["test.jsonl"]


def test_files_of_a_folder_are_recorded_and_found_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    path = folder(tmp_path, "train/a.jsonl", "test/a.jsonl")
    fresh, found = (prepared(path, cache=True) for _ in range(2))
    assert (fresh.cached, found.cached) == (False, True)
    assert fresh.notes == found.notes
    assert found.train.record()["sources"] == fresh.train.record()["sources"]
    assert found.train.record()["sources"][0]["files"] == ["train/a.jsonl"]


def test_data_sets_that_were_saved_to_disk_are_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    train, test = Dataset.from_list(rows("one", "two")), Dataset.from_list(rows("three"))
    train.save_to_disk(str(tmp_path / "one"), num_shards=2)
    jsonl(tmp_path / "one" / "cache-1.arrow", "what datasets left")  # not one of the files of rows
    data = prepared(tmp_path / "one")
    assert sorted(trained(data.train)) == ["one", "two"]
    assert data.train.record()["sources"][0]["files"] == [f"data-0000{n}-of-00002.arrow" for n in (0, 1)]
    train.select([1]).save_to_disk(str(tmp_path / "chosen"))
    assert trained(prepared(tmp_path / "chosen").train) == ["two"]
    DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "both"))
    data = prepared(tmp_path / "both", eval_path=str(tmp_path / "both"))
    assert (trained(data.train), trained(data.eval)) == (["one", "two"], ["three"])
    assert "not read: ['test/data-00000-of-00001.arrow']" in data.notes[0]


def test_an_old_saved_data_set_with_a_choice_of_rows_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, "a.jsonl")
    state = {"_data_files": [{"filename": "a.jsonl"}], "_indices_files": [{"filename": "indices.arrow"}]}
    (path / "state.json").write_text(json.dumps(state))
    assert "was saved by an old version of datasets" in refusal(path)
    for content in (
        "[]",
        "{",
        "[" * 5000,
        '{"_data_files": [3]}',
    ):  # not a data set's: a file beside the rows
        (path / "state.json").write_text(content)
        assert trained(prepared(path).train) == ["a.jsonl"]


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.data.sources.folders._MOST_FILES", 3)
    assert "holds more than 3 files of rows" in refusal(folder(tmp_path, *(f"{n}.jsonl" for n in range(4))))


def separated(between: str, count: int = 30) -> str:
    """A table whose cells hold all other separators, unquoted, and late rows with more of them."""
    others = "".join(other for other in ",;|\t" if other != between)
    body = [f"ask {n}{others}{between}answer {n}{others * (n // 10)}" for n in range(count)]
    return "\n".join([f"prompt{between}completion", *body]) + "\n"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_table_is_recognised_by_its_separator(tmp_path: Path, between: str, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    file.write_text(separated(between))
    data = prepared(file)
    assert [
        answer.partition(next(c for c in ",;|\t" if c != between))[0] for answer in trained(data.train)
    ] == [f"answer {n}" for n in range(30)]
    usual = {"csv": ",", "tsv": "\t"}[ending] == between
    assert data.notes == ([] if usual else [f"{file}: its cells are separated by {between!r}"])


def test_a_late_row_of_another_table_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(separated(";", 200) + "one; two; three\n")
    assert refusal(file).startswith(f"{file}:202: has 3 cells, but the header names 2 columns")


@pytest.mark.parametrize("content", ["text\nhello; you\nand | you\n", 'text\n"a, b"\n', "text\none\n"])
def test_a_table_of_one_column_is_not_split(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert len(trained(prepared(tmp_path / "a.csv", train_on="all").train)) == content.count("\n") - 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rows.josnl", "rows.jsonl"),
        ("rows.jsnl", "rows.jsonl"),
        ("rows.jsonlines", "rows.jsonl"),
        ("rows", "rows.jsonl"),
        ("Rows", "rows.jsonl"),
        ("rowz.jsonl", "rows.jsonl"),
        ("data/chats.parqet", "data/chats.parquet"),
        ("data/chat", "data/chats.parquet"),
        ("nowhere.jsom", "nowhere.json"),
    ],
)
def test_a_mistyped_file_is_not_asked_of_the_hub(
    cli: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("datasets.load_dataset", asked)
    jsonl(Path("rows.jsonl"), *rows("x"))
    Path("data").mkdir()
    Path("data/chats.parquet").touch()
    assert cli("recipe=inspect", "model=tiny", "data=file", f"data.path={typed}").code == 2
    err = capsys.readouterr().err
    assert f"nothing is at '{typed}'" in err
    assert meant in err


@pytest.mark.parametrize("name", ["imdb", "tatsu-lab/alpaca", "org/Feedback-v1.0", "data/squad"])
def test_a_name_of_the_hub_is_asked_for(
    cli: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def asked(path: str, *_: Any, **__: Any) -> None:
        raise ConnectionError(f"asked for {path}")

    monkeypatch.setattr("datasets.load_dataset", asked)
    jsonl(Path("rows.jsonl"), *rows("x"))
    Path("data").mkdir()
    assert cli("recipe=inspect", "model=tiny", "data=file", f"data.path={name}").code == 2
    assert f"asked for {name}" in capsys.readouterr().err
