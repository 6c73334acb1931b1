"""Know the cost before paying it: parameters, memory, time, and the settings that fit, without loading."""

from __future__ import annotations

from dataclasses import replace

from recipes import OBJECTIVES
from runner.config.recipe_rules import training_recipe
from runner.config.recipes.cards import SIZES, Card, find_card, sized
from runner.config.settings import RunConfig
from runner.core.atomic import json_text, write_atomically
from runner.core.errors import ConfigError, Issue
from runner.models.module_patterns import missing_names, module_hint
from runner.plan import screen
from runner.plan.architecture import Architecture
from runner.plan.estimate import Case, make_case, total_steps
from runner.plan.expected import Expected, expected
from runner.plan.expected import Rows as RowSummary
from runner.plan.find import find_architecture
from runner.plan.fit import best_setting, command
from runner.plan.gpus import found_cards, this_machine
from runner.plan.record import record
from runner.plan.rows import Rows, longest_row, read_rows, unread
from runner.plan.trained import SCORE
from runner.rules.rulebook import departures
from runner.runs.run_folder import RunFolder


def run(config: RunConfig, folder: RunFolder) -> None:
    """Print what a training config takes on one GPU, and what would fit; write ``plan.json``.

    The rows of ``data.path`` are read where the model's tokenizer is on this machine; elsewhere each row
    counts as long as it may be. Raises ``ConfigError`` for a model that is not to be had.
    """
    recipe = str(training_recipe(config.trainer["_target_"], OBJECTIVES))
    objective = OBJECTIVES[recipe]
    with folder.timed("check"):
        architecture = find_architecture(config.model)
    with folder.timed("data"):
        rows = read_rows(config, objective, config.data)
        folder.notes += rows.notes
    length = max(rows.lengths) if rows.lengths else longest_row(config, architecture.positions)
    classes = (rows.classes or 2) if objective.task_type == "SEQ_CLS" else None
    if objective.kind == "preference" and classes:
        classes = 1  # a reward
    _check_targets(config, architecture, [SCORE] if classes else [])
    case = make_case(config, objective, recipe, architecture, length, rows.lengths, rows.labelled, classes)
    cards = [(card, best_setting(case, card)) for card in _cards(config)]
    card, setting = cards[0]
    if not architecture.exact:
        folder.notes.append(
            f"the layers of {architecture.kind} are not known: activations follow their sizes"
        )
    screen.opening(case, rows, folder.notes)
    screen.memory_table(case, card if len(cards) == 1 else None)
    if len(cards) == 1:
        screen.verdict(case, card)
        screen.time_table(case, card)
        screen.advice(case, setting, card, rows)
    else:
        screen.table_of_sizes(case, cards)
        if there := _on_this_machine(config, recipe, case, rows, classes):
            screen.here(there)
        setting = next((found for _, found in cards if found is not None), None)
    ready = command(folder.record["overrides"], recipe, setting)
    parameters = case.architecture.parameters
    trainee = replace(config, recipe=recipe)
    odd = departures(trainee, rows.count or None, total_steps(case) or None, parameters)
    screen.departures(odd)
    screen.ready(ready, [card for card, _ in cards])
    found = record(case, cards, rows, ready, odd)
    write_atomically(folder.path / "plan.json", json_text(found))
    folder.metrics |= {"predicted_peak_bytes": found["memory"]["reserved_bytes"]}


def _on_this_machine(
    config: RunConfig, recipe: str, case: Case, rows: Rows, classes: int | None
) -> Expected | None:
    """What the run takes on a machine without a GPU, by the same function as its opening."""
    found = unread(config, case.architecture.positions)
    if rows.lengths:
        mean = sum(rows.lengths) / len(rows.lengths)
        found = RowSummary(rows.count, max(rows.lengths), mean, rows.labelled)
    trainee = replace(config, recipe=recipe)
    objective, steps = OBJECTIVES[recipe], total_steps(case) or None
    cells = (config.plan.cells, None)
    return expected(trainee, objective, case.architecture, found, this_machine(), None, steps, classes, cells)


def _check_targets(config: RunConfig, architecture: Architecture, heads: list[str]) -> None:
    """Refuse names of layers that the model lacks, as the run would; ``heads`` are new ones."""
    if not architecture.exact:
        return
    names = [*(each.name for each in architecture.linears), *architecture.embeddings]
    if missing := missing_names(config.lora.get("target_modules"), [*names, *heads]):
        message = f"{config.model.path or 'the model'} has no modules {', '.join(map(repr, missing))}"
        hint = module_hint(missing, names, ["all-linear"])
        raise ConfigError(Issue("lora.target_modules", message, hint))


def _cards(config: RunConfig) -> list[Card]:
    """The card to plan for: the one that is named, or found; else all common sizes."""
    if config.plan.gpu:
        card = find_card(str(config.plan.gpu))
        assert card is not None  # the check of the config knows it
        return [card]
    return found_cards()[:1] or [sized(size) for size in SIZES]
