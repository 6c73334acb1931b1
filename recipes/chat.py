"""Talk to a model and its adapters in the terminal, or let it answer one prompt or a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.config.adapters import adapters, head_issues
from runner.config.settings import RunConfig
from runner.core import console
from runner.core.errors import ConfigError, Issue
from runner.core.file_kinds import text_lines
from runner.core.progress import Progress
from runner.data.chat_template_check import apply_template
from runner.data.files import file_rows
from runner.data.formats import Example
from runner.data.messages import BadRow
from runner.data.template import Renderer
from runner.evaluation.answers import AnswerParser, question, reasoning_notes
from runner.models.adapter import attach, using
from runner.models.base_digest import base_identity
from runner.models.build import quantization_config
from runner.models.check_fp8 import check_machine
from runner.models.check_loading import check_loading
from runner.models.model import choose_precision, find_base, load_model
from runner.runs.run_folder import RunFolder


def run(config: RunConfig, folder: RunFolder) -> None:
    """Chat until the input ends, or answer ``prompt`` or ``prompts`` and stop.

    Writes ``conversation.jsonl`` or, of a file of prompts, ``answers.jsonl``; the answer to one prompt is
    printed. Raises ``ConfigError`` before loading weights.
    """
    with folder.timed("check"):
        found = adapters(config)
        if issues := head_issues(config):
            raise ConfigError(issues)
        prompts = _prompts(config)
        check_machine(config)
        base = find_base(config.model)
        precision = choose_precision(config)
        identity = base_identity(base, config.seed, precision.dtype)
        folder.notes += [*base.notes, *check_loading(config, base, identity)]
        folder.notes += apply_template(base.tokenizer, config.template)
        renderer = Renderer(base.tokenizer, config.template)
        quantization = quantization_config(config, precision)
    folder.record |= {"model": base.record(quantization) | {"identity": identity}}
    for note in folder.notes:
        console.warn(note)
    with folder.timed("load"):
        model: Any = load_model(base, quantization, precision.dtype, config.seed)
        model = attach(model, found)
        model.eval()

    from transformers import set_seed

    from runner.evaluation.chat import Conversation
    from runner.evaluation.chat_terminal import Terminal

    set_seed(config.seed)
    names = [adapter.name for adapter in found]
    conversation = Conversation(model, renderer, config.chat, names, precision.autocast)
    with folder.timed("answer"):
        if prompts:
            with using(model, conversation.active):
                answers, notes = _answer_all(config, model, renderer, prompts, precision.autocast)
            folder.write_lines("answers.jsonl", answers)
            folder.notes += notes
            for note in notes:
                console.warn(note)
        elif config.prompt is not None:
            with console.answering() as write:
                write("".join(conversation.ask(config.prompt)).strip() + "\n")
        else:
            Terminal(conversation, folder.path).run()
            rows = [{"messages": messages} for messages in conversation.finished]
            if rows:
                folder.write_lines("conversation.jsonl", rows)


def _prompts(config: RunConfig) -> list[Example]:
    """The prompts of a file: its lines, or the rows of a data file. Raises ``ConfigError`` with every
    bad row."""
    if config.prompts is None:
        return []
    if config.prompt is not None:
        raise ConfigError(Issue("prompt", "prompt and prompts contradict each other", "keep one of them"))
    file = Path(config.prompts).expanduser()
    if not file.is_file():
        raise ConfigError(Issue(f"prompts={config.prompts}", "there is no such file"))
    if file.suffix == ".txt":
        found = [line for _, line in text_lines(file)]
        if issues := [line for line in found if isinstance(line, Issue)]:
            raise ConfigError(issues)
        lines = [line for line in "".join(map(str, found)).splitlines() if line.strip()]
        examples = [
            _example(number, [{"role": "user", "content": line}]) for number, line in enumerate(lines)
        ]
    else:
        examples = _of_rows(file)
    if not examples:
        raise ConfigError(Issue(f"prompts={config.prompts}", "holds no prompts"))
    return examples


def _of_rows(file: Path) -> list[Example]:
    from runner.data.formats import prompt_messages

    place, rows = file_rows(file)
    examples: list[Example] = []
    issues: list[Issue] = []
    for number, row in rows:
        if isinstance(row, Issue):
            issues.append(row)
            continue
        try:
            examples.append(_example(number, prompt_messages(row)))
        except BadRow as error:
            issues.append(Issue(f"{place}{number}", str(error)))
    if issues:
        raise ConfigError(issues)
    return examples


def _example(number: int, messages: list[dict[str, Any]]) -> Example:
    """Messages with an answer to come, which is where the prompt ends."""
    return Example(number, messages=(*messages, {"role": "assistant", "content": ""}))


def _answer_all(
    config: RunConfig, model: Any, renderer: Renderer, prompts: list[Example], autocast: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of ``answers.jsonl``, in the order of the file, and what is to be said of them."""
    from runner.evaluation.chat import drawing
    from runner.evaluation.generate import generate

    size, drawn = config.generation.batch_size, drawing(config.chat)
    with Progress("answering", len(prompts)) as progress:
        texts = generate(
            model, renderer, prompts, size, config.chat.max_new_tokens, autocast, progress.advance, drawn
        )
    parser = AnswerParser(renderer)
    opened = [parser.opened(renderer.prompt(prompt)) for prompt in prompts]
    answers = [parser.parse(text, inside) for text, inside in zip(texts, opened, strict=True)]
    lines = [
        {"index": index, "prompt": question(prompt), "answer": found.answer}
        | ({"reasoning_content": found.reasoning.strip()} if found.reasoning is not None else {})
        for index, (prompt, found) in enumerate(zip(prompts, answers, strict=True))
    ]
    return lines, reasoning_notes({"": answers}, "chat.max_new_tokens", scored=False)
