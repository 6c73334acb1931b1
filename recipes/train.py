"""Every training recipe from top to bottom: check, prepare, load, answer, train, save, answer, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.config.objective import Objective
from runner.config.saved_head import saved_head
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Diverged, Issue
from runner.core.process import libraries
from runner.core.progress import TrainingProgress
from runner.data.prepare import prepare
from runner.parallel.deal import shares_of
from runner.parallel.group import ALONE, Group
from runner.reports import terminal
from runner.runs.earlier import Earlier
from runner.runs.parents import parents
from runner.runs.resume import check_same
from runner.runs.run_folder import RunFolder
from runner.training.context import run_context
from runner.training.load import compare, foresee, load_trainable, rows_of
from runner.training.out_of_memory import BatchShrinker
from runner.training.results import conclude, kept_scores, save_trained, training_metrics
from runner.training.setup import check_training, opening_notes, total_steps


def train(config: RunConfig, folder: RunFolder, objective: Objective, group: Group = ALONE) -> None:
    """Train one adapter, or the whole model, in a run folder.

    Each process of a ``group`` does all of it, but for what is written at the end, by the one that leads.

    Raises ``ConfigError`` before weights are loaded, ``Diverged`` when the loss, a gradient or a weight stops
    being finite, and ``Preempted`` after a signal, behind a checkpoint.
    """
    with folder.timed("import"), libraries.importing("trl"):  # beside the other processes of the group
        objective.trainer()
    with folder.timed("check"), group.first():
        setup = check_training(config, objective, folder.shared, group.count)
    with folder.timed("data"), group.first():
        data = prepare(config.data, setup.renderer, setup.max_length, config.seed, objective.kind)
        saved = saved_head(config, setup.base.config.to_dict())
        head = objective.head(data, saved) if objective.head else None
        data.check_held_out()
        check_same(setup.start, setup.resume_facts(data))
    steps = total_steps(setup.arguments, len(data.train.rows))
    shares = shares_of(setup.arguments, group.count)
    folder.record["parallel"] = {"engine": config.parallel.engine, **shares.record()}
    folder.notes += shares.warnings()
    setup.record_inputs(config, folder, data)
    foreseen = foresee(config, objective, setup, rows_of(setup, data, objective), [folder], steps, head)
    notes, expected = opening_notes(config, folder), foreseen.line() if foreseen else ""
    about = (setup.pieces.line(), expected, setup.adapted_line(), shares.line())
    terminal.opening(config, data, setup.method_line(config), steps, folder.path, notes, *about)

    # only now, as all import torch
    from runner.evaluation.generate import HeldOutGenerator
    from runner.parallel.zero import all_finite
    from runner.speed.shards import in_parts, shard

    with folder.timed("load"):
        parts = in_parts(config.parallel, group)
        trained = load_trainable(config, objective, setup, steps, head, on_host=parts)
        trained.spread(group)
        folder.metrics |= trained.parameter_counts()
        if parts:
            shard(trained.model, config.parallel, group)
    answers = not group.follows or parts  # the first process answers, with all where they share layers
    held_out = data.eval if objective.generates and answers else None
    generator = HeldOutGenerator(config, setup.renderer, held_out, setup.precision)
    with folder.timed("score_before"):
        before = generator.answer(trained.model, "before training", base_only=trained.fresh_adapter)

    folder.rewind(setup.start.step_in(folder.path), setup.start.lines_in(folder.path))
    with folder.timed("train"), TrainingProgress(steps) as progress:
        context = run_context(
            config, folder, progress, setup.resume_facts(data), trained.fresh_adapter, setup.pieces, group
        )
        datasets = (data.train.dataset(), data.eval.dataset() if data.eval else None)
        attempts = BatchShrinker(setup.arguments, setup.start, context.on_shrink)
        while True:  # once; with on_oom=shrink again, with a smaller batch
            trainer = objective.trainer()(
                trained.model, setup.arguments, setup.base.tokenizer, datasets, context
            )
            if setup.packs:
                folder.warn(setup.warmup_notes(len(trainer.train_dataset)))
            with attempts.attempt(trainer):
                result = trainer.train(resume_from_checkpoint=attempts.checkpoint)
                break
    if not all_finite(trained.model):
        raise Diverged("a trained weight is not finite; nothing was saved")
    folder.metrics |= training_metrics(trainer, result.training_loss, folder.times["train"])
    compare(folder)
    if data.eval is not None:
        with folder.timed("evaluate"):
            folder.metrics |= kept_scores(objective, trainer.evaluate())

    if group.follows:
        generator.answer(trained.model, "after training")
        return
    with folder.timed("save"):
        target = save_trained(config, setup, trained, folder.path, head)
    with folder.timed("score_after"):
        after = generator.answer(trained.model, "after training")
    terminal.samples(conclude(config, objective, folder, target, generator, (before, after)))
    if config.push_to:
        from runner.runs.push_to_hub import publish

        publish(config, folder, target)


def check_inputs(config: RunConfig, objective: Objective, path: Path, record: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if the run that has completed in ``path`` would not get the rows and the base of
    its ``record`` today."""
    setup = check_training(config, objective, path)
    data = prepare(config.data, setup.renderer, setup.max_length, config.seed, objective.kind)
    now = {**setup.inputs(data), "parents": parents(config, path)}
    hint = "the result stands; name a new output_dir to train on what is there now"
    if other := Earlier(path, record).other_inputs(now):
        raise ConfigError([Issue(str(path), warning, hint) for warning in other])
