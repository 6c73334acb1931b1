"""Several cells of a sweep trained together: the steps of ``recipes.training``, each once for all cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.training import (
    SCORES,
    Setup,
    check,
    complete_adapter,
    conclude,
    describe,
    total_parameters,
    total_steps,
)
from runner.config.adapters import adapters, parents
from runner.config.settings import RunConfig, SweepSettings
from runner.core import console, environment
from runner.core.errors import Diverged
from runner.core.progress import PackProgress
from runner.data.prepare import prepare
from runner.data.splits import Data
from runner.models.build import peft_config, training_arguments
from runner.models.model import device, load_model
from runner.reports import terminal
from runner.runs.checkpoint import step_of
from runner.runs.run_folder import RunFolder
from runner.training.objectives import OBJECTIVES


@dataclass
class PackedCell:
    """A cell of the sweep: its name, its config and its run folder."""

    name: str
    config: RunConfig
    folder: RunFolder


def train_pack(cells: list[PackedCell], settings: SweepSettings, work: Path) -> list[PackedCell]:
    """Train cells that ``runner.sweep.packable`` put together, and complete their run folders.

    ``work`` holds the checkpoints; one that has all these cells is gone on from. Returns the cells whose seed
    gave them another number of rows than the first has, which cannot keep step: for a pack of their own.
    Raises ``CannotPack`` before anything is trained.
    """
    from runner.packed import CannotPack

    cells = _without_dropped(cells, work)
    first = cells[0].config
    with timed(cells, "check"):
        setup = check(first, work)
    if setup.arguments.fp16:
        raise CannotPack("in fp16 one scale of the loss would serve them all")
    with timed(cells, "data"):
        found = _prepare(cells, setup)
    sizes = {name: _size(data) for name, data in found.items()}
    later = [cell for cell in cells if sizes[cell.name] != sizes[cells[0].name]]
    cells = [cell for cell in cells if cell not in later]
    steps = total_steps(setup.arguments, len(found[cells[0].name].train.rows))
    for cell in cells:
        data = found[cell.name]
        cell.folder.record["parents"] = parents(cell.config)
        cell.folder.notes += [*setup.base.notes, *setup.notes, *data.notes]
        describe(cell.folder, setup, data)
    with timed(cells, "load"):
        trainer = _load(cells, setup, settings, work, found, steps)
    generators = _generators(cells, setup, found)
    with timed(cells, "score_before"):
        trainer.adapters.state.show(0, 1)  # they begin alike
        asked = {id(generator): generator for generator in generators.values()}
        answers = {
            key: generator.answer(trainer.model, "before training", base_only=not first.adapter)
            for key, generator in asked.items()
        }
    _fit(cells, trainer, steps, work)
    alive = [cell for cell in cells if cell.name in {member.name for member in trainer.members}]
    with timed(alive, "score_after"):
        after = _answer(trainer, alive, generators)
    for cell in alive:
        before = answers[id(generators[cell.name])]
        _conclude(cell, trainer, setup, generators[cell.name], before, after[cell.name])
    return later


@contextmanager
def timed(cells: Sequence[PackedCell], phase: str) -> Iterator[None]:
    """Count the seconds of a phase in every cell's record."""
    with ExitStack() as stack:
        for cell in cells:
            stack.enter_context(cell.folder.timed(phase))
        yield


def _without_dropped(cells: list[PackedCell], work: Path) -> list[PackedCell]:
    """Record the cells that an interrupted start had decided to drop and left out of its checkpoint."""
    from runner.packed import checkpoint
    from runner.packed.halving import decisions

    dropped = {name: facts for found in decisions(work).values() for name, facts in found.items()}
    saved = checkpoint.newest(work, [cell.name for cell in cells if cell.name not in dropped])
    held = {item["name"] for item in checkpoint.facts(saved)["members"]} if saved else set()
    gone = [cell for cell in cells if saved and cell.name in dropped and cell.name not in held]
    for cell in gone:
        cell.folder.record["dropped"] = dropped[cell.name]
        cell.folder.finish("dropped")
    return [cell for cell in cells if cell not in gone]


def _prepare(cells: list[PackedCell], setup: Setup) -> dict[str, Data]:
    """The rows of each cell; cells whose seeds split the file alike share them."""
    by_seed: dict[int, Data] = {}
    alike: dict[tuple[str, str], Data] = {}
    for config in (cell.config for cell in cells):
        if config.seed not in by_seed:
            kind = OBJECTIVES[config.recipe].kind
            data = prepare(config.data, setup.renderer, setup.max_length, config.seed, kind)
            data.check_held_out()
            prints = (data.train.fingerprint, data.eval.fingerprint if data.eval else "")
            by_seed[config.seed] = alike.setdefault(prints, data)
    return {cell.name: by_seed[cell.config.seed] for cell in cells}


def _size(data: Data) -> tuple[int, int]:
    return len(data.train.rows), len(data.eval.rows) if data.eval else 0


def _load(
    cells: list[PackedCell],
    setup: Setup,
    settings: SweepSettings,
    work: Path,
    found: dict[str, Data],
    steps: int,
) -> Any:
    """The base with all adapters, and the trainer."""
    from runner.packed import CannotPack, checkpoint
    from runner.packed.adapters import pack_adapters
    from runner.packed.compiled import CompiledLayers
    from runner.packed.halving import Halving
    from runner.packed.memory import estimate_cells_per_pass
    from runner.packed.trainer import PackedTrainer
    from runner.training.token_loss import supports_chunked_loss

    first = cells[0].config
    names = [cell.name for cell in cells]
    model: Any = load_model(setup.base, setup.quantization, setup.precision.dtype, first.seed)
    damaged: list[str] = []
    saved = checkpoint.newest(work, names, damaged)
    for remark in damaged:
        console.warn(remark)
        for cell in cells:
            cell.folder.notes.append(remark)
    rank = checkpoint.facts(saved)["rank"] if saved else None
    packed = pack_adapters(
        model,
        [peft_config(cell.config) for cell in cells],
        [cell.config.seed for cell in cells],
        rank,
        start=adapters(first)[0].folder if first.adapter else None,
        drops=not getattr(setup.arguments, "disable_dropout", False),
    )
    if not supports_chunked_loss(packed.model):
        raise CannotPack("the model's head is no plain frozen linear layer")
    members = _members(cells, setup, work, packed, found)
    data = found[cells[0].name]
    objective = OBJECTIVES[first.recipe].packed_class()(
        setup.base.tokenizer.pad_token_id, adapter=bool(first.adapter)
    )
    rows = setup.arguments.per_device_train_batch_size * objective.sides
    longest = max(split.longest for split in (data.train, data.eval) if split)
    checkpointing = setup.arguments.gradient_checkpointing
    cells_per_pass, size = estimate_cells_per_pass(packed, rows, longest, checkpointing, settings.max_cells)
    terminal.pack_opening(
        data, setup.precision, (len(cells), cells_per_pass), steps, size, cells[0].folder.notes
    )
    trainer = PackedTrainer(
        packed,
        members,
        objective,
        setup.base.tokenizer,
        (data.train.dataset(), data.eval.dataset() if data.eval else None),
        cells_per_pass,
        settings.checkpoint_seconds,
        CompiledLayers(model),
        Halving(settings, steps, work),
    )
    trainer.resume_from, trainer.longest = saved, longest
    for cell in cells:
        cell.folder.rewind(step_of(saved))
    return trainer


def _members(
    cells: list[PackedCell], setup: Setup, work: Path, packed: Any, found: dict[str, Data]
) -> list[Any]:
    """What the trainer needs of each cell."""
    from runner.packed.member import Member

    shared = total_parameters(packed.model) - packed.total_size()
    members = []
    for cell, size in zip(cells, packed.sizes(), strict=True):
        arguments, _ = training_arguments(cell.config, setup.precision, work, device().type == "cuda")
        arguments.save_total_limit = 2  # one to fall back on
        data = found[cell.name]
        held_out = data.eval.rows if data.eval else []
        members.append(Member(cell.name, arguments, data.train.rows, held_out, cell.folder.log))
        cell.folder.metrics |= {"trainable_parameters": size, "total_parameters": shared + size}
    return members


def _generators(cells: list[PackedCell], setup: Setup, found: dict[str, Data]) -> dict[str, Any]:
    """What asks each cell its held-out prompts; one for all cells of the same rows."""
    from runner.evaluation.generate import HeldOutGenerator

    by_data: dict[int, Any] = {}
    for cell in cells:
        data = found[cell.name]
        by_data.setdefault(
            id(data), HeldOutGenerator(cell.config, setup.renderer, data.eval, setup.precision)
        )
    return {cell.name: by_data[id(found[cell.name])] for cell in cells}


def _fit(cells: list[PackedCell], trainer: Any, steps: int, work: Path) -> None:
    """Train and measure; a member that ends early is recorded at once."""
    progress = PackProgress(steps)
    folders = {cell.name: cell.folder for cell in cells}
    trainer.on_step = progress.update_pack
    trainer.on_end = lambda member: _end(folders[member.name], member)
    with timed(cells, "train"), progress:
        trainer.train(resume_from_checkpoint=str(trainer.resume_from) if trainer.resume_from else None)
    trainer.drop_not_finite()
    if trainer.members and trainer.members[0].held_out:
        with timed(cells, "evaluate"):
            trainer.evaluate()


def _end(folder: RunFolder, member: Any) -> None:
    """Record a member that left its pack before the end."""
    facts = dict(member.ended)
    status = facts.pop("status")
    folder.metrics |= {"tokens": member.tokens}
    folder.record |= facts
    folder.finish(status, Diverged(facts["reason"]) if status == "diverged" else None)
    console.warn(f"{member.name} {status} {facts.get('reason', '')}".rstrip())


def _answer(trainer: Any, cells: list[PackedCell], generators: dict[str, Any]) -> dict[str, list[str]]:
    """Every cell's answers after training; neighbours with the same prompts are answered together."""
    answers: dict[str, list[str]] = {}
    first = 0
    while first < len(cells):
        generator, last = generators[cells[first].name], first + 1
        while (
            last < len(cells)
            and generators[cells[last].name] is generator
            and last - first < trainer.cells_per_pass
        ):
            last += 1
        trainer.adapters.state.show(first, last)
        found = generator.answer_pack(trainer.model, last - first, "after training")
        answers |= {cell.name: own for cell, own in zip(cells[first:last], found, strict=True)}
        first = last
    return answers


def _conclude(
    cell: PackedCell, trainer: Any, setup: Setup, generator: Any, before: list[str], after: list[str]
) -> None:
    """Save the adapter and everything that is known of it."""
    index = [member.name for member in trainer.members].index(cell.name)
    member, folder = trainer.members[index], cell.folder
    seconds = max(folder.times["train"], 1e-9)
    steps = trainer.state.global_step
    folder.metrics |= {
        "train_loss": member.total_loss / max(steps, 1),
        "steps": steps,
        "tokens": member.tokens,
        "tokens_per_second": round((member.tokens - member.resumed_tokens) / seconds, 1),
        "pack_tokens_per_second": round(
            sum(each.tokens - each.resumed_tokens for each in trainer.members) / seconds, 1
        ),
        "pack_cells": len(trainer.members),
        "pack_cells_at_once": min(trainer.cells_per_pass, len(trainer.members)),
        "peak_memory_bytes": environment.peak_memory(),
    }
    if "eval_loss" in member.scores:
        folder.metrics |= {
            key.replace("/", "_"): member.scores[key] for key in SCORES if key in member.scores
        }
    if member.held_out_rows:
        rows = [
            {"index": number, "loss": loss, "tokens": tokens}
            for number, (loss, tokens) in enumerate(member.held_out_rows)
        ]
        folder.write_lines("held_out.jsonl", rows)
    target = folder.path / "adapter"
    with folder.timed("save"):
        trainer.adapters.save(index, target)
        complete_adapter(cell.config, setup, target)
    conclude(cell.config, folder, target, generator, before, after)
    folder.finish("completed")
