"""Score a model on held-out rows, the base against its adapters side by side, with bootstrap intervals."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.markup import escape

from runner.config.adapters import adapters, head_issues
from runner.config.path_rules import held_out_alone, missing
from runner.config.settings import RunConfig
from runner.core import console
from runner.core.atomic import json_text, write_atomically
from runner.core.errors import ConfigError, Issue, nearest
from runner.core.file_kinds import decoded
from runner.core.progress import Progress
from runner.data.chat_template_check import apply_template
from runner.data.foreign import foreign_rows
from runner.data.formats import Example
from runner.data.max_length import row_limit
from runner.data.prepare import prepare
from runner.data.splits import Split
from runner.data.template import Renderer
from runner.evaluation.answers import (
    Answer,
    AnswerReader,
    answer_fields,
    answerable,
    question,
    reasoning_notes,
)
from runner.evaluation.lm_eval_tasks import run_tasks, task_issues
from runner.evaluation.trained_rows import trained_rows
from runner.models.adapter import attach, using
from runner.models.base_digest import base_identity
from runner.models.build import quantization_config
from runner.models.check_fp8 import check_machine
from runner.models.check_loading import check_loading
from runner.models.model import Precision, choose_precision, find_base, load_model
from runner.reports import terminal
from runner.runs.run_folder import RunFolder


def run(config: RunConfig, folder: RunFolder) -> None:
    """Write ``evaluation.json`` and ``samples.jsonl``, and print a table. Raises ``ConfigError``."""
    with folder.timed("check"):
        names, function = _chosen(config)
        check_machine(config)
        base = find_base(config.model)
        precision = choose_precision(config)
        identity = base_identity(base, config.seed, precision.dtype)
        folder.notes += [*base.notes, *check_loading(config, base, identity)]
        folder.notes += apply_template(base.tokenizer, config.template)
        renderer = Renderer(base.tokenizer, config.template, config.data.train_on)
        quantization = quantization_config(config, precision)
        max_length = row_limit(config, base.config)
    quantised = base.quantised(quantization)
    terminal.subject(config, f"{quantised['name']}, {precision.name}" if quantised else precision.name)
    with folder.timed("data"):
        rows = _rows(config, folder, renderer, max_length)
    folder.record |= {
        "model": base.record(quantization) | {"identity": identity},
        "data": {rows.name: rows.record()},
    }
    folder.write()
    for note in folder.notes:
        console.warn(note)
    with folder.timed("load"):
        model: Any = load_model(base, quantization, precision.dtype, config.seed)
        model = attach(model, adapters(config))
    named = [adapter.name for adapter in adapters(config)]
    columns: dict[str, str | None] = {"base" if named else "model": None, **{name: name for name in named}}
    answered = list(islice(answerable(rows, renderer), config.generation.rows))
    reader = AnswerReader(renderer, answered)
    measured: dict[str, Any] = {}
    answers: dict[str, list[Answer]] = {}
    tasks: dict[str, dict[str, float]] = {}
    for column, active in columns.items():
        with using(model, active), folder.timed(f"score {column}"):
            answers[column] = reader.read(_answers(model, config, renderer, answered, precision, column))
            losses = _losses(config, model, rows, base.tokenizer.pad_token_id, precision)
            measured[column] = losses + _scores(reader.expected, answers[column], names, function)
            if config.evaluate.tasks:
                batch = config.generation.batch_size
                tasks[column] = run_tasks(model, base.tokenizer, config.evaluate.tasks, batch, config.seed)
    evaluation = _compare(config, measured, tasks)
    if notes := reasoning_notes(
        {f"of {column}": own for column, own in answers.items()}, "generation.max_new_tokens"
    ):
        evaluation["notes"] = notes
        folder.notes += notes
    write_atomically(folder.path / "evaluation.json", json_text(evaluation))
    folder.write_lines("samples.jsonl", _samples(config, answered, reader.expected, answers))
    last = evaluation["models"][list(columns)[-1]]
    folder.metrics |= {name: score["value"] for name, score in last.items()}
    terminal.evaluation(evaluation)
    for note in notes:
        console.warn(note)


def _chosen(config: RunConfig) -> tuple[list[str] | None, dict[str, Callable[[str, str], float]]]:
    """The chosen metrics, None for all that fit, and the user's function by name.

    Raises ``ConfigError`` for these, for tasks that cannot be run, and for adapters that do not answer.
    """
    from runner.evaluation.metrics import METRICS, load_function

    settings = config.evaluate
    issues = head_issues(config) + task_issues(settings.tasks)
    function: dict[str, Callable[[str, str], float]] = {}
    for name in settings.metrics or ():
        if name not in METRICS:
            message = f"{name!r} is not a metric"
            issues.append(Issue("evaluate.metrics", message, nearest(name, METRICS)))
    if settings.function is not None:
        wrong = _function_issues(settings.function)
        if not wrong:
            name = settings.function.rpartition(":")[2]
            try:  # here, as what the file imports may be missing
                function[name] = load_function(settings.function)
            except Exception as error:
                message = f"running the file fails: {type(error).__name__}: {error}"
                wrong = [Issue(f"evaluate.function={settings.function}", message)]
        issues += wrong
    if issues:
        raise ConfigError(issues)
    return list(settings.metrics) if settings.metrics is not None else None, function


def _function_issues(place: str) -> list[Issue]:
    """What is wrong with ``FILE.py:NAME``, without running the file."""
    from runner.evaluation.metrics import METRICS

    file, _, name = place.rpartition(":")
    where, path = f"evaluate.function={place}", Path(file).expanduser()
    if not file.endswith(".py") or not path.is_file():
        return [Issue(where, f"there is no file {file or place!r}", "FILE.py:NAME")]
    try:
        tree = ast.parse(path.read_bytes())  # which may name another encoding in its first line
    except (SyntaxError, ValueError) as error:
        text = decoded(path.read_bytes(), file)
        if isinstance(text, Issue) and "codec" in str(error):
            return [text]
        return [Issue(where, f"{file} is not Python: {error}")]
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if name not in defined:
        return [Issue(where, f"{file} defines no {name!r}", nearest(name, defined))]
    if name in (*METRICS, "loss", "perplexity"):
        return [Issue(where, f"{name} is the name of another score", "rename the function")]
    return []


def _rows(config: RunConfig, folder: RunFolder, renderer: Renderer, max_length: int | None) -> Split:
    """The held-out rows, or all rows where none are held out."""
    from runner.evaluation.bootstrap import enough

    settings = config.data
    if alone := held_out_alone(vars(settings)):
        limits = {"max_rows": settings.eval_max_rows, "eval_max_rows": None}
        settings = replace(settings, path=settings.eval_path, eval_path=None, **limits)
    data = prepare(settings, renderer, max_length, config.seed)
    folder.notes += data.notes
    folder.record["rows_from_cache"] = data.cached
    rows = replace(data.train, name="eval") if alone else data.eval or data.train
    if alone:
        gone = ", ".join(missing(config.data.path))
        folder.notes.append(f"{gone} is gone: that no scored row was trained on could not be checked")
    elif data.eval is None:
        folder.notes.append("no rows are held out: the rows of data.path are scored")
    if note := foreign_rows(settings):
        folder.notes.append(note)
    folder.notes += trained_rows(config, rows)
    places = ", ".join(source.path for source in rows.sources)
    console.out.print(f"[bold]rows[/] {len(rows.rows):,} of {escape(places)}")
    if config.adapter and not enough(len(rows.rows), config.evaluate.confidence):
        folder.notes.append(f"{len(rows.rows)} rows are too few to call a difference more than noise")
    return rows


def _answers(
    model: Any, config: RunConfig, renderer: Renderer, examples: list[Any], precision: Precision, column: str
) -> list[str]:
    from runner.evaluation.generate import generate

    if not examples:
        return []
    settings = config.generation
    with Progress(f"answering, {column}", len(examples)) as progress:
        return generate(
            model,
            renderer,
            examples,
            settings.batch_size,
            settings.max_new_tokens,
            precision.autocast,
            progress.advance,
        )


def _losses(config: RunConfig, model: Any, rows: Split, pad: int, precision: Precision) -> list[Any]:
    """Loss (nats a token) and perplexity over the trained tokens of all rows."""
    from runner.evaluation.metrics import Measure, ratio
    from runner.evaluation.row_loss import row_losses

    size = config.trainer.get("per_device_eval_batch_size", 8)
    loss = ratio("loss", row_losses(model, rows.rows, size, pad, precision.autocast))
    return [loss, Measure("perplexity", loss.statistics, lambda sums: math.exp(loss.score(sums)))]


def _scores(
    expected: list[str],
    answers: list[Answer],
    names: list[str] | None,
    function: dict[str, Callable[[str, str], float]],
) -> list[Any]:
    """The scores of a model's answers, by the chosen metrics and the user's own function."""
    from runner.evaluation.metrics import applicable_metrics, mean_of, measure

    if not expected:
        return []
    texts = [found.answer for found in answers]
    chosen = applicable_metrics(expected) if names is None else names
    found = [measure(name, texts, expected) for name in chosen]
    return found + [mean_of(name, score, texts, expected) for name, score in function.items()]


def _compare(config: RunConfig, measured: dict[str, Any], tasks: dict[str, Any]) -> dict[str, Any]:
    """What ``evaluation.json`` holds: each model's scores, and their differences from the first model's."""
    from runner.evaluation.bootstrap import difference, enough, interval

    settings = config.evaluate
    drawn = (settings.confidence, settings.resamples, config.seed)
    first = next(iter(measured))
    result: dict[str, Any] = {
        "confidence": settings.confidence,
        "resamples": settings.resamples,
        "models": {},
        "differences": {},
        "tasks": tasks,
    }
    for column, measures in measured.items():
        result["models"][column] = {
            item.name: vars(interval(item, *drawn))
            | {"rows": len(item.statistics), "higher": item.higher}
            | ({"signature": item.signature} if item.signature else {})
            for item in measures
        }
        if column != first:
            pairs = zip(measures, measured[first], strict=True)
            gaps = {}
            for item, other in pairs:
                gap = difference(item, other, *drawn)
                significant = gap.excludes_zero and enough(len(item.statistics), settings.confidence)
                gaps[item.name] = vars(gap) | {"significant": significant}
            result["differences"][column] = gaps
    return result


def _samples(
    config: RunConfig, examples: list[Example], expected: list[str], answers: dict[str, list[Answer]]
) -> list[dict[str, Any]]:
    """The lines of ``samples.jsonl``, as the training recipes write them: before is the first model."""
    from runner.evaluation.metrics import exact_match

    last = list(answers.values())[-1]
    first = next(iter(answers.values())) if len(answers) > 1 else None
    lines = []
    for index, example in enumerate(examples[: config.generation.samples]):
        right, after, before = expected[index], last[index], first[index] if first else None
        lines.append(
            {"index": index, "prompt": question(example)}
            | answer_fields("expected", example.answer, right)
            | (answer_fields("before", before.text, before.answer) if before else {"before": None})
            | answer_fields("after", after.text, after.answer)
            | {"before_match": exact_match(before.answer, right) if before else None}
            | {"after_match": exact_match(after.answer, right)}
        )
    return lines
