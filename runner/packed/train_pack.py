"""Several cells of a sweep trained together: the steps of a training recipe, each once for all cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from runner.config.adapters import adapters
from runner.config.objective import Objective
from runner.config.settings import SweepSettings
from runner.core import console, environment
from runner.core.errors import Diverged
from runner.core.progress import PackProgress
from runner.data.prepare import prepare
from runner.data.splits import Data
from runner.evaluation.generate import HeldOutGenerator
from runner.models.build import peft_config
from runner.models.model import load_model
from runner.packed import CannotPack, checkpoint
from runner.packed.adapters import PackedAdapters, pack_adapters
from runner.packed.cell import CellRun, CellState
from runner.packed.foresee import foresee_pack
from runner.packed.halving import Halving, decisions
from runner.packed.plan import PackPlan
from runner.packed.trainer import PackedTrainer
from runner.runs.checkpoint import step_of
from runner.runs.parents import parents
from runner.runs.run_folder import RunFolder
from runner.training.load import compare, total_parameters
from runner.training.results import complete_adapter, conclude, kept_scores
from runner.training.setup import TrainingSetup, check_training, total_steps


@dataclass(frozen=True)
class Pack:
    """What the steps of a pack share: its cells, their objective, and the folder of its checkpoints."""

    cells: list[CellRun]
    objective: Objective
    setup: TrainingSetup  # of the first
    setups: dict[str, TrainingSetup]  # by the name of the cell, each with its own arguments
    data: dict[str, Data]  # by the name of the cell; cells with the same rows share them
    work: Path

    @property
    def first(self) -> CellRun:
        """The cell whose config stands for what all have in common."""
        return self.cells[0]

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the seconds of a phase in every cell's record."""
        with timed(self.cells, phase):
            yield


def train_pack(
    cells: list[CellRun], objective: Objective, settings: SweepSettings, work: Path
) -> list[CellRun]:
    """Train cells that ``runner.sweep.packable`` put together, and complete their run folders.

    ``work`` holds the checkpoints; one that has all these cells is resumed. Returns the cells whose seed gave
    them another number of examples than the first has, which cannot keep step: for a pack of their own.
    Raises ``CannotPack`` before anything is trained.
    """
    cells = _without_dropped(cells, work)
    with timed(cells, "check"):
        setup = check_training(cells[0].config, objective, work)
    if setup.arguments.fp16:
        raise CannotPack("fp16 has one loss scaler for the whole batch")
    with timed(cells, "data"):
        data = _prepare(cells, setup, objective)
    later = [cell for cell in cells if _size(data[cell.name]) != _size(data[cells[0].name])]
    setups = {cell.name: setup.of_cell(cell.config, work) for cell in cells}
    pack = Pack([cell for cell in cells if cell not in later], objective, setup, setups, data, work)
    steps = total_steps(setup.arguments, len(data[pack.first.name].train.rows))
    for cell in pack.cells:
        cell.folder.record["parents"] = parents(cell.config, cell.folder.path)
        setups[cell.name].record_inputs(cell.config, cell.folder, data[cell.name])

    foreseen = foresee_pack(pack.cells, objective, setup, data, steps, settings.max_cells)
    progress = PackProgress(steps)
    with pack.timed("load"):
        resumed = _newest_checkpoint(pack)
        packed = _load(pack, resumed)
        per_pass = foreseen.cells_per_pass if foreseen else 1
        trainer = _trainer(pack, packed, settings, per_pass, progress)
    generators = _generators(pack)
    with pack.timed("score_before"):
        packed.state.show(0, 1)  # they begin alike
        distinct = {id(generator): generator for generator in generators.values()}
        before = {
            key: generator.answer(packed.model, "before training", base_only=not pack.first.config.adapter)
            for key, generator in distinct.items()
        }

    with pack.timed("train"), progress:
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    trainer.drop_not_finite()
    if trainer.cells and trainer.cells[0].held_out:
        with pack.timed("evaluate"):
            trainer.evaluate()

    trained = {state.name for state in trainer.cells}
    alive = [cell for cell in pack.cells if cell.name in trained]
    with timed(alive, "score_after"):
        after = _answer(trainer, alive, generators)
    for index, cell in enumerate(alive):
        generator = generators[cell.name]
        _conclude(pack, cell, trainer, index, generator, (before[id(generator)], after[cell.name]))
    return later


@contextmanager
def timed(cells: Sequence[CellRun], phase: str) -> Iterator[None]:
    """Count the seconds of a phase in the record of each of these cells."""
    with ExitStack() as stack:
        for cell in cells:
            stack.enter_context(cell.folder.timed(phase))
        yield


def _without_dropped(cells: list[CellRun], work: Path) -> list[CellRun]:
    """Record the cells that an interrupted start had decided to drop and left out of its checkpoint."""
    dropped = {name: facts for found in decisions(work).values() for name, facts in found.items()}
    saved, _ = checkpoint.newest(work, [cell.name for cell in cells if cell.name not in dropped])
    held = {item["name"] for item in checkpoint.facts(saved)["members"]} if saved else set()
    gone = [cell for cell in cells if saved and cell.name in dropped and cell.name not in held]
    for cell in gone:
        cell.folder.record["dropped"] = dropped[cell.name]
        cell.folder.finish("dropped")
    return [cell for cell in cells if cell not in gone]


def _prepare(cells: list[CellRun], setup: TrainingSetup, objective: Objective) -> dict[str, Data]:
    """The data of each cell; cells whose seeds split the file alike share them."""
    by_seed: dict[int, Data] = {}
    alike: dict[tuple[str, str], Data] = {}
    for config in (cell.config for cell in cells):
        if config.seed not in by_seed:
            data = prepare(config.data, setup.renderer, setup.max_length, config.seed, objective.kind)
            data.check_held_out()
            prints = (data.train.fingerprint, data.eval.fingerprint if data.eval else "")
            by_seed[config.seed] = alike.setdefault(prints, data)
    return {cell.name: by_seed[cell.config.seed] for cell in cells}


def _size(data: Data) -> tuple[int, int]:
    return len(data.train.rows), len(data.eval.rows) if data.eval else 0


def _newest_checkpoint(pack: Pack) -> Path | None:
    """The checkpoint from which all cells resume, with a warning for each damaged one that is newer."""
    found, damaged = checkpoint.newest(pack.work, [cell.name for cell in pack.cells])
    for warning in damaged:
        console.warn(warning)
        for cell in pack.cells:
            cell.folder.notes.append(warning)
    for cell in pack.cells:
        cell.folder.rewind(step_of(found), checkpoint.lines(found, cell.name))
    return found


def _load(pack: Pack, resumed: Path | None) -> PackedAdapters:
    """The base with the adapters of all cells. Raises ``CannotPack``."""
    setup, first = pack.setup, pack.first.config
    return pack_adapters(
        load_model(setup.base, setup.quantization, setup.precision.dtype, first.seed),
        [peft_config(cell.config, pack.objective.task_type) for cell in pack.cells],
        [cell.config.seed for cell in pack.cells],
        rank=checkpoint.facts(resumed)["rank"] if resumed else None,
        start=adapters(first)[0] if first.adapter else None,
        drops=not getattr(setup.arguments, "disable_dropout", False),
    )


def _trainer(
    pack: Pack,
    packed: PackedAdapters,
    settings: SweepSettings,
    cells_per_pass: int,
    progress: PackProgress,
) -> PackedTrainer:
    """The trainer of all cells."""
    setup, data = pack.setup, pack.data[pack.first.name]
    assert pack.objective.packed is not None
    objective = pack.objective.packed()(
        setup.base.tokenizer.pad_token_id, adapter=bool(pack.first.config.adapter)
    )
    steps = total_steps(setup.arguments, len(data.train.rows))
    folders = {cell.name: cell.folder for cell in pack.cells}
    plan = PackPlan(
        cells_per_pass=cells_per_pass,
        longest=max(split.longest for split in data.splits),
        pieces=setup.pieces,
        checkpoint_seconds=settings.checkpoint_seconds,
        after_step=Halving(settings, steps, pack.work),
        on_step=progress.update_pack,
        on_end=lambda state: _record_end(folders[state.name], state),
    )
    datasets = (data.train.dataset(), data.eval.dataset() if data.eval else None)
    return PackedTrainer(packed, _states(pack, packed), objective, setup.base.tokenizer, datasets, plan)


def _states(pack: Pack, packed: PackedAdapters) -> list[CellState]:
    """What the trainer needs of each cell."""
    shared = total_parameters(packed.model) - packed.total_size()
    states = []
    for cell, size in zip(pack.cells, packed.sizes(), strict=True):
        arguments = pack.setups[cell.name].arguments
        arguments.save_total_limit = 2  # one to fall back on
        data = pack.data[cell.name]
        held_out = data.eval.rows if data.eval else []
        folder = cell.folder
        states.append(CellState(cell.name, arguments, data.train.rows, held_out, folder.log, folder.lines))
        cell.folder.metrics |= {"trainable_parameters": size, "total_parameters": shared + size}
    return states


def _generators(pack: Pack) -> dict[str, HeldOutGenerator]:
    """What answers the held-out prompts of each cell; one for all cells of the same data."""
    by_data: dict[int, HeldOutGenerator] = {}
    for cell in pack.cells:
        data = pack.data[cell.name]
        if id(data) not in by_data:
            setup = pack.setup
            by_data[id(data)] = HeldOutGenerator(cell.config, setup.renderer, data.eval, setup.precision)
    return {cell.name: by_data[id(pack.data[cell.name])] for cell in pack.cells}


def _record_end(folder: RunFolder, state: CellState) -> None:
    """Record a cell that left its pack before the end."""
    facts = dict(state.ended or {})
    status = facts.pop("status")
    folder.metrics |= {"tokens": state.tokens}
    folder.record |= facts
    folder.finish(status, Diverged(facts["reason"]) if status == "diverged" else None)
    console.warn(f"{state.name} {status} {facts.get('reason', '')}".rstrip())


def _answer(
    trainer: PackedTrainer, cells: list[CellRun], generators: dict[str, HeldOutGenerator]
) -> dict[str, list[str]]:
    """Every cell's answers after training; neighbours with the same prompts are answered together."""
    answers: dict[str, list[str]] = {}
    first = 0
    while first < len(cells):
        generator, last = generators[cells[first].name], first + 1
        limit = min(len(cells), first + trainer.passes.cells_per_pass)
        while last < limit and generators[cells[last].name] is generator:
            last += 1
        trainer.adapters.state.show(first, last)
        found = generator.answer_pack(trainer.model, last - first, "after training")
        answers |= {cell.name: own for cell, own in zip(cells[first:last], found, strict=True)}
        first = last
    return answers


def _conclude(
    pack: Pack,
    cell: CellRun,
    trainer: PackedTrainer,
    index: int,
    generator: HeldOutGenerator,
    answers: tuple[list[str], list[str]],
) -> None:
    """Save the adapter of a cell, the trainer's cell number ``index``, and all that is known of it."""
    state, folder = trainer.cells[index], cell.folder
    seconds, steps = max(folder.times["train"], 1e-9), trainer.state.global_step
    trained = sum(each.tokens - each.resumed_tokens for each in trainer.cells)
    folder.metrics |= {
        "train_loss": state.total_loss / max(steps, 1),
        "steps": steps,
        "tokens": state.tokens,
        "tokens_per_second": round((state.tokens - state.resumed_tokens) / seconds, 1),
        "pack_tokens_per_second": round(trained / seconds, 1),
        "pack_cells": len(trainer.cells),
        "pack_cells_at_once": min(trainer.passes.cells_per_pass, len(trainer.cells)),
        "peak_memory_bytes": environment.peak_memory(),
    }
    compare(folder)
    folder.metrics |= kept_scores(pack.objective, state.scores)
    if state.held_out_rows:
        rows = enumerate(state.held_out_rows)
        lines = [{"index": number, "loss": loss, "tokens": tokens} for number, (loss, tokens) in rows]
        folder.write_lines("held_out.jsonl", lines)
    target = folder.path / "adapter"
    with folder.timed("save"):
        trainer.adapters.save(index, target)
        complete_adapter(cell.config, pack.setup, target)
    conclude(cell.config, pack.objective, folder, target, generator, answers)
    folder.finish("completed")
