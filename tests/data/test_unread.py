"""What rows hold that is not read is listed with counts, and what may be wrong with them is counted."""

from pathlib import Path
from typing import Any

import pytest

from helpers.prepared import USER, answer, chat, jsonl, prepared, refusal, texts, trained


def notes(tmp_path: Path, *rows: Any, kind: Any = "completion", **data: Any) -> list[str]:
    """Warnings about rows, without the path before and the place after them."""
    file = jsonl(tmp_path / "a.jsonl", *rows)
    found = prepared(file, kind, **data).notes
    return [note.removeprefix(f"{file}: ").partition(f", {file}")[0] for note in found]


def test_all_columns_that_are_not_read_in_one_line_with_counts(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "id": n, "source": "x", "note": None} for n in range(3)]
    assert notes(tmp_path, *rows, {**rows[0], "system_prompt": "Rhyme."}) == [
        "columns not read: id (4), source (4), system_prompt (1); "
        "'data.columns={system_prompt: system}' reads it",
        "train: 3 rows repeat earlier ones; data.deduplicate=true drops them",
    ]
    assert notes(tmp_path, {**chat(USER, answer()), "conversations": [{"from": "human", "value": "x"}]}) == [
        "columns not read: conversations (1)"
    ]
    assert notes(tmp_path, {"prompt": "q", "completion": "a", "chosen": "b", "label": False}) == [
        "columns not read: chosen (1), label (1)"
    ]
    # a mapped column takes the place of one that has the name already
    row = {"question": "q", "prompt": "other", "completion": "a"}
    assert notes(tmp_path, row, columns={"question": "prompt"}) == ["columns not read: prompt (1)"]
    # of two system prompts the conversation's own is read
    row = chat({"role": "system", "content": "own"}, USER, answer(), system="column")
    assert notes(tmp_path, row) == ["columns not read: system (1)"]


def test_many_and_hostile_column_names_are_bounded_and_escaped(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": "a", "\x1b[31m": "x"} | {f"c{n:03}": n for n in range(300)}
    (note,) = notes(tmp_path, row)
    assert "'\\x1b[31m' (1)" in note
    assert note.endswith("c048 (1) and 251 more")


def test_message_keys_that_are_not_read(tmp_path: Path) -> None:
    rows = chat({**USER, "id": 1}, answer(reasoning="Two and three.", refusal=None, annotations=[]))
    assert notes(tmp_path, rows, rows)[0] == "message keys not read: id (2), reasoning (2)"


def test_the_warnings_are_in_the_record_and_on_the_screen(cli: Any, capsys: Any) -> None:
    jsonl(Path("a.jsonl"), chat(USER, answer(reasoning="x"), id=5))
    said = ["a.jsonl: columns not read: id (1)", "a.jsonl: message keys not read: reasoning (1)"]
    run = cli("recipe=inspect", "model=tiny", "data=file", "data.path=a.jsonl")
    assert run.record["notes"] == said
    printed = capsys.readouterr().out
    assert all(note in printed for note in said)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, False) for key in ("loss", "train", "training", "trainable", "calculate_loss", "is_trained")),
        *((key, 0) for key in ("weight", "loss", "loss_weight", "compute_loss", "train_on_turn")),
        *((key, True) for key in ("mask", "masked", "isMasked", "no_loss", "ignore_loss", "ignore", "skip")),
        ("weight", 0.0),
    ],
)
def test_an_answer_that_is_marked_is_not_trained(tmp_path: Path, key: str, value: Any) -> None:
    rows = [
        chat(USER, answer("BAD", **{key: value}), USER, answer("good", **{key: not value})),
        chat(USER, answer("BAD", **{key: value}), USER, answer("fine", **{key: None})),
    ]
    data = prepared(jsonl(tmp_path / "a.jsonl", *rows))
    assert trained(data.train) == ["good", "fine"]
    assert data.notes == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"loss": 0.5}, "messages[1] has the loss float 0.5; allowed: 0 (only read) or 1 (learnt)"),
        ({"train": "false"}, "messages[1] has the train str 'false'"),
        ({"weight": [0]}, "messages[1] has the weight list [0]"),
        ({"weight": 1, "loss": False}, "messages[1] is trained by its 'weight' and not by its 'loss'"),
        ({"loss_mask": 0}, "messages[1].loss_mask looks like a mark of what is trained"),
        ({"train_detail": [{"begin_offset": 0}]}, "messages[1].train_detail looks like a mark"),
        ({"assistant_masks": [0, 1]}, "messages[1].assistant_masks looks like a mark"),
    ],
)
def test_a_flag_that_cannot_be_honoured_is_refused_by_its_name(
    tmp_path: Path, flags: dict, says: str
) -> None:
    file = jsonl(tmp_path / "a.jsonl", chat(USER, answer(), USER, answer()), chat(USER, answer(**flags)))
    assert refusal(file).startswith(f"{file}:2: {says}")


def test_a_flag_on_a_question_is_counted(tmp_path: Path) -> None:
    assert notes(tmp_path, chat({**USER, "train": False}, answer())) == []
    (note,) = notes(tmp_path, chat({**USER, "train": True}, answer()))
    assert note == "1 rows with a message that is no answer and has 'train': it is not trained"


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("key", "value"),
    [("weight", 0), ("weight", "0"), ("weight", 0.0), ("train", False), ("loss", 0), ("masked", "True")],
)
@pytest.mark.parametrize("kind", ["completion", "preference"])
def test_a_row_that_is_marked_is_dropped_and_counted(tmp_path: Path, key: str, value: Any, kind: Any) -> None:
    good, bad = ({"prompt": "q", "completion": w, "chosen": w, "rejected": "no"} for w in ("good", "BAD"))
    file = jsonl(tmp_path / "a.jsonl", good, {**bad, key: value})
    data = prepared(file, kind)
    assert [text.partition(" /")[0] for text in trained(data.train)] == ["good"]
    assert "train: 1 of 2 rows dropped: masked by its weight of 0" in data.notes
    assert data.train.counts["masked by its weight of 0"] == 1


@pytest.mark.parametrize("kind", ["completion", "preference", "unpaired_preference"])
def test_turns_after_the_last_answer_that_is_trained_are_left_out(tmp_path: Path, kind: Any) -> None:
    """They are not trained on, and so neither what is expected nor what measures the row."""
    end = ({"role": "user", "content": "more?"}, answer("", weight=0))
    row: dict[str, Any] = {"messages": [USER, answer("good"), *end]}
    if kind == "preference":
        row = {"chosen": row["messages"], "rejected": [USER, answer("bad"), *end]}
    elif kind == "unpaired_preference":  # of which all after the last question is liked
        row = {"messages": [USER, answer("good"), answer("", weight=0)], "label": True}
    data = prepared(jsonl(tmp_path / "a.jsonl", row, row), kind, min_chars=3)
    assert [example.answer for example in data.train.examples] == ["good", "good"]
    assert trained(data.train) == [{"preference": "good / bad"}.get(kind, "good")] * 2
    said = [
        note for note in data.notes if "repeat" not in note and "never" not in note and "all " not in note
    ]
    assert [note.partition(": ")[2].partition(", which")[0] for note in said] == [
        "2 rows with masked turns after the last answer that is trained on"
    ]


def test_a_sample_weight_is_refused_and_a_measured_loss_is_listed(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": "a"}
    assert "a.jsonl:1: has the weight float 0.5" in refusal(
        jsonl(tmp_path / "a.jsonl", {**row, "weight": 0.5})
    )
    assert notes(tmp_path, {**row, "loss": 0.0}) == ["columns not read: loss (1)"]
    contradiction = refusal(jsonl(tmp_path / "a.jsonl", {**row, "weight": 0, "train": True}))
    assert "a.jsonl:1: is trained by its 'train' and not by its 'weight'" in contradiction


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            [{"type": "image", "text": None, "image": "x.png"}, {"type": "text", "text": "w"}],
            "of the type 'image'",
        ),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "of the type 'image_url'"),
        ([{"type": "input_audio", "input_audio": {}}], "of the type 'input_audio'"),
        ([{"image": "x.png"}], "a part with ['image']; has no text content"),
        ([{"type": "text", "text": 5}], "has no text content, got int 5"),
        ([7], "must be a part with a text, got int 7"),
        ([{"type": "text", "text": None}], "has no text content, got null"),
    ],
)
def test_a_part_that_is_no_text_is_refused(tmp_path: Path, content: list, says: str) -> None:
    file = jsonl(tmp_path / "a.jsonl", chat({"role": "user", "content": content}, answer()))
    assert says in refusal(file)
    assert f"{file}:1: messages[0]" in refusal(file)


def test_a_null_text_is_no_text_and_counted(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": None}, {"type": "text", "text": "3", "cache_control": 1}, "!"]
    file = jsonl(tmp_path / "a.jsonl", chat(USER, answer(), {"role": "tool", "content": parts}, answer()))
    data = prepared(file)
    assert "tool\n3!<" in texts(data.train)[0]
    assert "None" not in texts(data.train)[0]
    assert data.notes == [
        f"{file}: message keys not read: content.cache_control (1)",
        f"{file}: 1 rows with a null text in its content, {file}:1 first",
    ]


def test_media_is_counted(tmp_path: Path) -> None:
    row = chat(
        {"role": "user", "content": "<image>What?"}, answer(), images=["a.png"], audios=["b"], video=None
    )
    assert notes(tmp_path, row, chat(USER, answer())) == [
        "rows about media, which is not read: audios (1), images (1)",
        "1 rows with a placeholder of media, as <image>, in the text: the model sees only that word",
    ]
    assert notes(tmp_path, chat({"role": "user", "content": "<video>src</video>"}, answer())) == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("row", "kind", "doubt"),
    [
        ({"prompt": "a", "completion": "nan"}, "completion", "a text that is only nan, None or null"),
        ({"prompt": "a", "completion": "b", "system": "None"}, "completion", "a text that is only nan, None"),
        ({"text": " NULL "}, "completion", "a text that is only nan, None or null"),
        ({"text": "x", "label": "NaN"}, "classification", "a text that is only nan, None or null"),
        ({"prompt": "a", "chosen": "b", "rejected": "None"}, "preference", "a text that is only nan, None"),
        ({"prompt": "a", "completion": "caf\ufffd"}, "completion", "the replacement character U+FFFD"),
        ({"prompt": "a", "completion": "\x1b[31mred"}, "completion", "control characters"),
        ({"prompt": "a", "completion": "b\x00c"}, "completion", "control characters"),
        (chat(USER, answer("caf\u00c3\u00a9")), "completion", "characters like 'Ã©'"),
        (chat(USER, answer(reasoning_content="\u00e2\u20ac\u0153x")), "completion", "characters like 'Ã©'"),
        (
            chat(answer("What?"), {"role": "user", "content": "b"}),
            "completion",
            "an answer without a question",
        ),
        (chat({"role": "system", "content": "s"}, answer()), "completion", "an answer without a question"),
        (chat(USER, answer(), USER), "completion", "messages after the last answer, which are not read"),
        (
            {"instruction": "Say the word", "output": "Say the word\nyes"},
            "completion",
            "an answer that begins with its whole prompt",
        ),
    ],
)
def test_doubtful_words_are_counted(tmp_path: Path, row: dict, kind: Any, doubt: str) -> None:
    good = {name: "x" if name == "label" else "fine words" for name, value in row.items()}
    good = (
        chat(USER, answer("fine")) if "messages" in row else good | ({"label": "x"} if "label" in row else {})
    )
    found = notes(tmp_path, good, row, kind=kind)
    assert [note for note in found if note.startswith(f"1 rows with {doubt}")]


def test_words_that_only_look_doubtful_are_not_counted(tmp_path: Path) -> None:
    rows = ({"prompt": "q", "completion": word} for word in ("None of them", "NÃO", "Château", "Nanny", "Ã"))
    assert notes(tmp_path, *rows) == []


def test_labels_of_feedback_are_counted_where_all_are_alike(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a", "label": True} for n in range(3)]
    alike = "train: all labels are alike: 3 liked, 0 not liked; KTO contrasts the two"
    assert notes(tmp_path, *rows, kind="unpaired_preference") == [alike]
    other = {**rows[0], "completion": "b", "label": 0}
    assert notes(tmp_path, *rows, other, kind="unpaired_preference") == []


def test_classes_are_listed_and_nearly_equal_ones_named(tmp_path: Path) -> None:
    labels = ("Spam", "spam", "ham", "ham", "not ham", "not_ham", "1", "01")
    rows = ({"text": f"text {n}", "label": label} for n, label in enumerate(labels))
    assert notes(tmp_path, *rows, kind="classification") == [
        "train: 7 classes: ham (2), 01 (1), 1 (1), Spam (1), not ham (1), not_ham (1), spam (1)",
        "train: nearly equal classes, trained as different ones: '01' and '1', 'Spam' and 'spam', "
        "'not ham' and 'not_ham'",
    ]
