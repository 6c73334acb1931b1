"""A chat template is read from a file, tried before it is used, and what it adds by itself is said."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from helpers.command import TINY, Run
from runner.config.settings import TemplateSettings
from runner.core.errors import ConfigError, ExitCode
from runner.core.paths import cache_dir
from runner.core.process.child_process import Died, in_child
from runner.core.process.limits import TooMuch, limited
from runner.data.chat_template_check import apply_template
from runner.models.model import byte_tokenizer

TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
INSPECT = ("recipe=inspect", *TINY[1:], "data.max_rows=8", "data.eval_max_rows=2")
NESTED = (
    "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)


def refusal(template: str) -> str:
    with pytest.raises(ConfigError) as caught:
        apply_template(byte_tokenizer(), TemplateSettings(chat_template=template))
    return str(caught.value)


@pytest.mark.parametrize("given", ["my.jinja", "./my.jinja", "~/my.jinja", "absolute", "no_suffix"])
@pytest.mark.slow
def test_a_path_is_read(cli: Callable[..., Run], tmp_path: Path, monkeypatch, given: str) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(cache_dir()))  # else the model would be converted again
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "no_suffix" if given == "no_suffix" else "my.jinja"
    (tmp_path / name).write_text(TURNS, encoding="utf-8")
    given = str(tmp_path / name) if given == "absolute" else given
    run = cli(*INSPECT, f"template.chat_template='{given}'")  # Hydra wants a ~ quoted
    assert run.code == 0
    saved = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    assert saved["template"]["chat_template"] == TURNS
    record = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert any(f"was read from {given} sha256:" in note for note in record["notes"])
    rows = (run.folder / "inspect.jsonl").read_bytes()
    assert b"user: " in rows
    (tmp_path / name).write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    again = cli("--config-path", str(run.folder), "--config-name", "config", folder="again")
    assert again.code == 0
    assert (again.folder / "inspect.jsonl").read_bytes() == rows
    record = json.loads((again.folder / "run.json").read_text(encoding="utf-8"))
    assert any(f"was read from {given} sha256:" in note for note in record["notes"])


def test_a_path_in_an_option_file_is_read(cli: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "my.jinja").write_text(TURNS, encoding="utf-8")
    (tmp_path / "conf" / "template").mkdir(parents=True)
    (tmp_path / "conf" / "template" / "own.yaml").write_text("chat_template: my.jinja\n", encoding="utf-8")
    run = cli(*INSPECT, "--config-dir", "conf", "template=own")
    assert run.code == 0
    assert b"user: " in (run.folder / "inspect.jsonl").read_bytes()


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("my.jinj", "did you mean 'my.jinja'?"),
        ("folder", "is not a file"),
        ("image.jinja", "image.jinja:1: byte 1 of the line is not UTF-8"),
        ("nul.jinja", "it has NUL bytes"),
        ("huge.jinja", "has more than 1048576 bytes"),
        ("words.jinja", "holds no Jinja"),
        ("empty.jinja", "holds no Jinja"),
        ("pipe.jinja", "is not a file"),
        ("chatml", "nothing is at 'chatml'"),
        ("You are a model", "nothing is at 'You are a model', and it is no Jinja"),
    ],
)
def test_what_is_no_template_file_is_refused(
    cli: Callable[..., Run], tmp_path: Path, capfd, given: str, says: str
) -> None:
    (tmp_path / "my.jinja").write_text(TURNS, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "image.jinja").write_bytes(b"\xff\xd8{{")
    (tmp_path / "nul.jinja").write_bytes(b"\0{{ messages }}")
    (tmp_path / "huge.jinja").write_bytes(b"{{ messages }}" + b" " * 2**20)
    (tmp_path / "words.jinja").write_text("my.jinja", encoding="utf-8")
    (tmp_path / "empty.jinja").touch()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jinja")
    run = cli(*INSPECT, f"template.chat_template={given}")
    assert run.code == ExitCode.CONFIG_ERROR
    assert says in "".join(capfd.readouterr())


def test_a_template_of_the_tokenizer_is_chosen_by_name() -> None:
    made = byte_tokenizer()
    both = {"rag": "{{ messages[-1].content }}", "tool_use": TURNS}
    made.chat_template = both
    with pytest.raises(ConfigError, match=r"several chat templates: rag, tool_use\n.*chat_template=rag"):
        apply_template(made, TemplateSettings())
    with pytest.raises(ConfigError, match=r"nothing is at 'tool'(.|\n)*did you mean 'tool_use'"):
        apply_template(made, TemplateSettings(chat_template="tool"))
    apply_template(made, TemplateSettings(chat_template="tool_use"))
    assert made.chat_template == TURNS
    made.chat_template = both | {"default": "{{ messages }}"}
    notes = apply_template(made, TemplateSettings())
    assert made.chat_template == "{{ messages }}"
    assert "'default' is used; another one: template.chat_template=rag" in notes[0]


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}",
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{{ messages|length }}",
        "{% if false %}{{ messages }}{% endif %}",
    ],
)
def test_a_template_that_shows_no_words_is_refused(template: str) -> None:
    assert "writes the same whatever the messages say" in refusal(template)


@pytest.mark.parametrize(
    "template",
    [
        TURNS,
        "{{ messages[-1].content }}",
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system message') }}{% endif %}" + TURNS,
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
        "{{ raise_exception('other messages') }}",
    ],
)
def test_a_template_that_shows_some_words_is_not_refused(template: str) -> None:
    assert apply_template(byte_tokenizer(), TemplateSettings(chat_template=template)) == []


def test_what_the_template_adds_by_itself_is_said() -> None:
    kind = "{% if messages[0].role != 'system' %}system: Be kind.{{ eos_token }}\n{% endif %}" + TURNS
    [note] = apply_template(byte_tokenizer(), TemplateSettings(chat_template=kind))
    assert "adds a system prompt" in note
    assert "Be kind." in note
    assert apply_template(byte_tokenizer(), TemplateSettings(chat_template=kind, system="No.")) == []
    dated = "{% set d = date_string or strftime_now('%d %b %Y') %}{{ d }}\n" + TURNS
    [note] = apply_template(byte_tokenizer(), TemplateSettings(chat_template=dated))
    assert f"{datetime.now():%d %b %Y} is trained on" in note
    kwargs = {"date_string": "26 Jul 2024"}
    assert apply_template(byte_tokenizer(), TemplateSettings(chat_template=dated, kwargs=kwargs)) == []


BOMBS = {
    "string": "{{ 'x' * 1000000000000 }}",
    "width": "{{ '{:>99999999999}'.format(1) }}",
    "center": "{{ 'a'|center(10000000000) }}",
    "replace": "{% set s = 'a' * 100000 %}{{ s|replace('a', s)|replace('a', s) }}",
    "join": "{% set r = range(99999)|list * 1000 %}{{ (r * 1000)|join }}",
}
SLOW_BOMBS = {
    "lists": NESTED + "{{ ns.a == ns.b }}",
    "in": NESTED + "{{ ns.a in [ns.b] }}",
    "sort": NESTED + "{{ [ns.a, ns.b]|sort }}",
    "json": NESTED + "{{ ns.a|tojson }}",
    "hash": NESTED.replace("[ns.a, ns.a]", "(ns.a, ns.a)").replace("a=[1]", "a=(1,)") + "{{ {ns.a: 1} }}",
    "round": "{{ 1.5|round(999999999, 'floor') }}",
    "integers": "{% set ns = namespace(n=9999999999) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}"
    "{% endfor %}{{ ns.n % 7 }}",
    "lipsum": "{{ lipsum(n=100000000) }}",
    "cycler": "{% set c = cycler(1, 2) %}{% for i in range(99999) %}{% for j in range(99999) %}{{ c.next() }}"
    "{% endfor %}{% endfor %}",
}
EVERY = [*BOMBS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_BOMBS)]


@pytest.mark.parametrize("name", EVERY)
def test_a_template_that_computes_for_ever_is_refused(name: str) -> None:
    began = time.monotonic()
    said = refusal((BOMBS | SLOW_BOMBS)[name] + TURNS)
    assert "it takes more than" in said
    assert time.monotonic() - began < 25


def test_loops_nested_deeper_than_python_allows_are_a_config_error() -> None:
    assert "cannot be compiled" in refusal("{% for a in [1] %}" * 25 + "{% endfor %}" * 25 + TURNS)


def compare() -> bool:
    first, second = [1], [1]
    for _ in range(60):
        first, second = [first, first], [second, second]
    return first == second


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_returns_raises_and_is_ended() -> None:
    assert in_child(lambda: {"pid": os.getpid()})["pid"] != os.getpid()
    with pytest.raises(ZeroDivisionError):
        in_child(lambda: 1 // 0)
    with pytest.raises(Died, match="SIGKILL"):
        in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(TooMuch, match=r"more than 0.2 seconds"):
        in_child(compare, seconds=0.2)


@pytest.mark.slow
def test_the_hard_limit_ends_one_call_into_c() -> None:
    def work() -> None:
        with limited():
            compare()

    with pytest.raises(TooMuch, match="in one step"):
        in_child(work)


def test_a_signal_ends_the_wait_and_the_process() -> None:
    class Ended(Exception):
        pass

    def end(*_: object) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        timer.start()
        with pytest.raises(Ended):
            in_child(compare)
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(ChildProcessError):  # nothing is left behind
        os.waitpid(-1, os.WNOHANG)
