"""Chat through the command line: the same prompt as in training, adapters switched, nothing else printed."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from helpers.command import TINY
from runner.config.settings import DataSettings
from runner.core import console
from runner.data.reader import read_sources

# enough steps for the adapter to answer otherwise than its base
TRAIN = (*TINY, "trainer.learning_rate=0.05", "trainer.save_strategy=no", "data.metric=null")
CHAT = ("recipe=chat", "chat.max_new_tokens=6")
ALWAYS = {"config.yaml", "run.json", "report.html"}


@pytest.fixture
def typed(monkeypatch):
    def say(*lines: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return say


def conversation(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "conversation.jsonl").read_text().splitlines()]


@pytest.mark.report
def test_one_prompt_prints_the_answer_and_nothing_else(cli, parent, capsys):
    parent(*TRAIN)
    capsys.readouterr()
    run = cli(*CHAT, "adapter=start", "prompt=hello")
    printed = capsys.readouterr()
    assert run.code == 0
    assert run.files() == ALWAYS
    assert len(printed.out.splitlines()) <= 1
    assert "device" in printed.err
    assert "--" not in printed.out
    assert not console.out.stderr, "what comes after is printed to stdout again"


def test_a_file_of_prompts_is_answered_in_order(cli):
    Path("asks.txt").write_text("first\n\nsecond, and longer\n")
    run = cli(*CHAT, "model=tiny", "prompts=asks.txt")
    assert run.files() == ALWAYS | {"answers.jsonl"}
    assert [row["prompt"] for row in run.lines("answers.jsonl")] == ["first", "second, and longer"]
    Path("asks.jsonl").write_text(
        '{"system": "s", "prompt": "first"}\n{"messages": [{"role": "user", "content": "x"}]}\n'
    )
    run = cli(*CHAT, "model=tiny", "prompts=asks.jsonl", folder="rows")
    assert [row["prompt"] for row in run.lines("answers.jsonl")] == ["first", "x"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prompts=nowhere.txt"], "there is no such file"),
        (["prompts=empty.txt"], "holds no prompts"),
        (["prompts=bad.jsonl"], "bad.jsonl:2: has no 'prompt'"),
        (["prompt=a", "prompts=empty.txt"], "contradict each other"),
        (["prompts=latin.txt"], "latin.txt:2: byte 4 of the line is not UTF-8"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(cli, capsys, words, said):
    Path("empty.txt").write_text("\n")
    Path("latin.txt").write_bytes(b"tea\ncaf\xe9\n")
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"question": "b"}\n')
    run = cli(*CHAT, "model=tiny", *words)
    assert run.code == 2
    assert not run.folder.exists()
    assert said in capsys.readouterr().err


def test_a_conversation_is_kept_and_can_be_trained_on(cli, typed):
    typed("hello", "and now?", "/reset", "new")
    run = cli(*CHAT, "model=tiny", "template.system=be brief")
    assert run.files() == ALWAYS | {"conversation.jsonl"}
    first, second = conversation(run.folder)
    assert [message["role"] for message in first["messages"]] == ["system"] + ["user", "assistant"] * 2
    assert second["messages"][1]["content"] == "new"
    file = str(run.folder / "conversation.jsonl")
    (source,) = read_sources(file, DataSettings(), "data.path", 0, run.folder)
    assert len(source.examples) == 2


def test_adapters_are_switched_in_the_middle(cli, parent, typed):
    parent(*TRAIN, folder="one")
    parent(*TRAIN, "trainer.learning_rate=0.1", folder="two")
    lines = [
        "hi",
        "/reset",
        "/adapter two",
        "hi",
        "/reset",
        "/adapter none",
        "hi",
        "/reset",
        "/adapter one",
        "hi",
    ]
    typed(*lines)
    run = cli(*CHAT, "adapter=[one,two]")
    one, two, base, again = (row["messages"][-1]["content"] for row in conversation(run.folder))
    assert one == again
    assert len({one, two, base}) > 1  # not three: a tiny model may say the same thing twice


def test_commands_answer_for_themselves(cli, parent, typed, capsys):
    parent(*TRAIN, folder="one")
    capsys.readouterr()
    typed(
        "/save",
        "hi",
        "/adapter",
        "/adapter onne",
        "/sistem x",
        "/system be brief",
        "/save kept.jsonl",
        "/save kept.jsonl",
        "/quit",
        "never",
    )
    run = cli(*CHAT, "adapter=one")
    said = capsys.readouterr().out
    for text in (
        "the conversation is empty",
        "* one",
        "did you mean 'one'",
        "did you mean '/system'",
        "system prompt: be brief",
    ):
        assert text in said
    assert "kept.jsonl is there already" in said
    kept = json.loads(Path("kept.jsonl").read_text())
    assert [message["role"] for message in kept["messages"]] == ["system", "user", "assistant"]
    assert len(conversation(run.folder)) == 1


def test_the_prompt_of_a_turn_is_what_training_renders(cli):
    """The template's own rendering of the history, token by token."""
    from runner.config.settings import ChatSettings, ModelSettings, TemplateSettings
    from runner.data.template import Renderer
    from runner.evaluation.chat import Conversation
    from runner.models.model import find_base, load_model

    base = find_base(ModelSettings(weights="random", architecture="tiny"))
    renderer = Renderer(base.tokenizer, TemplateSettings(system="be brief"))
    model = load_model(base, None, torch.float32, 0)
    talk = Conversation(model, renderer, ChatSettings(max_new_tokens=3), [], None)
    "".join(talk.ask("hello"))
    talk.turns.append({"role": "user", "content": "and now?"})
    expected = base.tokenizer.apply_chat_template(talk.messages, add_generation_prompt=True, tokenize=False)
    assert base.tokenizer.decode(talk.prompt_ids()) == expected
    assert expected.startswith("<|im_start|>system\nbe brief<|im_end|>")


def test_the_oldest_turns_are_forgotten_when_there_is_no_room(cli, typed, capsys):
    typed(*["x" * 300] * 9)
    run = cli(*CHAT, "model=tiny", "template.system=stay")
    assert run.code == 0
    assert "are forgotten" in capsys.readouterr().out
    (row,) = conversation(run.folder)
    assert row["messages"][0] == {"role": "system", "content": "stay"}
    assert len(row["messages"]) < 19


def test_an_adapter_of_another_base_does_not_chat(cli, parent, capsys):
    parent(*TRAIN, folder="one")
    assert cli(*CHAT, "adapter=one", "seed=1", "prompt=hi").code == 2
    assert "belongs to another base" in capsys.readouterr().err
