"""Every override that a message of ours advises can be typed as it stands: the shell and Hydra read it."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from recipes import OBJECTIVES
from recipes.run import _end
from runner.cli import run_config
from runner.cli.command import TOP_LEVEL
from runner.config.checks import known_fields
from runner.config.recipe_rules import recipe_names
from runner.config.settings import LIBRARY_SECTIONS, OWN_SECTIONS, RunConfig
from runner.core.errors import ConfigError
from runner.core.paths import PACKAGE
from runner.core.signals import Preempted

NAMES = "|".join((*TOP_LEVEL, "hydra"))
OVERRIDE = re.compile(rf"(?:^|(?<=[\s(:]))(?P<quote>['\"]?)(?:{NAMES})(?:[./][\w.]+)*=(?=[^\s=])")
SPECIAL = set("[]{}()*?$ ;|<>&'`~#!\\")  # what a shell does not leave as it is


def texts() -> Iterator[tuple[str, str]]:
    """Each text of our code that can be an advice, with X for what an f-string fills in, and its place.

    What an error is about, and the first word of an issue, repeats what was typed.
    """
    for file in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "recipes").glob("*.py")]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        skipped: set[int] = set()
        for node in ast.walk(tree):
            first = (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") in ("Issue", "_issue")
                and node.args[:1]
            )
            named = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in (
                "where",
                "message",
            )
            alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for part in [*(first or []), *([node.value] if named or alone else [])]:
                skipped |= {id(inner) for inner in ast.walk(part)}
            if isinstance(node, ast.JoinedStr):
                skipped |= {id(inner) for part in node.values for inner in ast.walk(part)}
        for node in ast.walk(tree):
            place = f"{file.name}:{getattr(node, 'lineno', 0)}"
            if id(node) in skipped:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
                yield place, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield place, node.value


def advised() -> Iterator[tuple[str, str]]:
    """Each override that a text advises, as it would be typed: quoted, or up to the next space or mark."""
    for place, text in texts():
        end = 0
        for match in OVERRIDE.finditer(text):
            rest = text[match.start() :]
            if match.start() < end:
                continue  # inside of another one
            if quote := match["quote"]:
                found = rest[: rest.index(quote, 1) + 1]
            else:
                found = rest.split()[0].rstrip(",;:?")
                found = found if "(" in found else found.rstrip(")")
            end = match.start() + len(found)
            yield place, found.replace("{X}", "{X: X}")


ADVISED = sorted(set(advised()))


def test_there_is_advice() -> None:
    assert len(ADVISED) > 50


@pytest.mark.parametrize(("place", "text"), ADVISED, ids=[f"{place} {text}" for place, text in ADVISED])
def test_an_advised_override_can_be_typed(place: str, text: str) -> None:
    [word] = shlex.split(text)
    assert text[0] in "'\"" or not SPECIAL & set(text) or text.startswith("data.path=$"), f"{place}: quote it"
    key, _, value = word.partition("=")
    if value != "...":
        OverridesParser.create().parse_override(word)
    section, _, name = key.partition(".")
    if section in OWN_SECTIONS or section in LIBRARY_SECTIONS:
        targets = {"lora": ["peft.LoraConfig"], "trainer": ["trl.SFTConfig", "trl.DPOConfig"]}
        kinds = targets.get(section, [None])
        fields = {field for kind in kinds for field in known_fields(section, kind)}
        # what a chat template reads is for the template to say
        assert name.startswith("kwargs.") or name in (*fields, "", "X"), key


AWKWARD = ["a=b", "x y", "it's", 'say "hi"', "$HOME/rows", "`id`", "a\\b", "你好!", "{", "[a", "<|im_end|>"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("value", AWKWARD)
def test_the_quoting_that_is_advised_gives_the_value_back(value: str) -> None:
    command = run_config.parse(
        [f"template.system={value}", "data.eval_path=null", "data.metric=null"], OBJECTIVES
    )
    try:
        run_config.check(command)
    except ConfigError as error:
        [issue] = error.issues
        _, found, typed = issue.hint.partition("and for Hydra: ")
        assert found or "quote the whole" in issue.hint, issue.hint
        if found:
            [config] = run_config.check(run_config.parse(shlex.split(typed), OBJECTIVES)).configs
            assert config.template.system == value


def test_the_stages_that_are_advised_are_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        run_config.check(run_config.parse(["recipe=chain"], OBJECTIVES))
    [issue] = caught.value.issues
    [config] = run_config.check(
        run_config.parse(["recipe=chain", *shlex.split(issue.hint)], OBJECTIVES)
    ).configs
    assert config.stages == {"sft": ["recipe=sft"], "merge": ["recipe=merge", "adapter={sft}"]}


@pytest.mark.slow
def test_a_recipe_that_cannot_resume_is_not_told_to(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each recipe that is advised to resume takes the key, and no other does."""
    for recipe in recipe_names():
        words = [f"recipe={recipe}", "resume=auto", "output_dir=x"]
        found = []
        try:
            run_config.check(run_config.parse(words, OBJECTIVES))
        except ConfigError as error:
            found = [issue for issue in error.issues if "resume has no effect" in issue.message]
        refuses = bool(found)
        config = RunConfig(recipe=recipe)
        folder = SimpleNamespace(path=tmp_path / recipe, record={}, finish=lambda *_: None)
        assert _end(config, folder, Preempted("ended by SIGTERM")) == 75  # type: ignore[arg-type]
        assert ("resume=auto" in capsys.readouterr().err) != refuses, recipe
