"""What each job of a sweep will take, and whether its device has that, before the first one begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from recipes import OBJECTIVES
from runner.config.objective import Objective
from runner.config.recipes.cards import find_card
from runner.config.settings import RunConfig, SweepSettings
from runner.core.errors import ConfigError, Issue, RunnerError
from runner.plan.architecture import Architecture
from runner.plan.estimate import optimizer_steps
from runner.plan.expected import Expected, Place, Rows, expected, gib
from runner.plan.find import find_architecture
from runner.plan.gpus import found_gpus, this_machine
from runner.plan.packs import widest
from runner.plan.rows import USUAL_LENGTH, head, read_data, summary, unread
from runner.sweep.cells import placed
from runner.sweep.jobs import Job

# A model, its rows or what stands for them, and the outputs of a new head; None where they are not to be had.
_Read = tuple[Architecture, Rows, int | None] | None


@dataclass(frozen=True)
class Verdict:
    """What a job is expected to take."""

    job: Job
    expected: Expected

    @property
    def fits(self) -> bool:
        """Whether the device can compute it, and has as much memory left."""
        return self.refusal is None and self.expected.needed <= self.expected.place.free

    @cached_property
    def refusal(self) -> Issue | None:
        """Why it cannot be, with the nearest settings that can; None where it may."""
        return self.expected.misfit()

    def line(self) -> str:
        """One line for people, the same for jobs of the same kind."""
        place = self.expected.place
        where = place.card.name if place.card else "the memory here"
        word = "fits" if self.fits else "cannot fit" if self.refusal else "may not fit"
        if lacking := self.expected.step.lacking(place.card):
            return f"{self.expected.line(needed=True)}; does not run on {place.name}, which has no {lacking}"
        return f"{self.expected.line(needed=True)}; {word} {where}, {gib(place.free)} GiB are free"


def foresee(
    jobs: Sequence[Job], settings: SweepSettings, on_cuda: bool, gpu: str | None = None
) -> list[Verdict]:
    """What each job that trains will take, on the GPU with the most free memory or in that of this machine;
    or on a ``gpu`` of ``plan.gpu``.

    A job whose config does not tell, or whose model is not to be had, has no verdict: it says itself what is
    wrong. Raises ``ConfigError`` for those that cannot fit the GPU or have faulty rows, all together.
    """
    training = [(job, objective) for job in jobs if (objective := OBJECTIVES.get(job.cells[0].config.recipe))]
    place = _place(on_cuda, gpu) if training else None
    found: list[Verdict] = []
    issues: dict[Issue, list[str]] = {}
    read: dict[str, _Read | ConfigError] = {}
    for job, objective in training:
        assert place is not None
        try:
            said = _expected(job, objective, settings.max_cells, place, read)
            if said is not None:
                said.check_fits()
                found.append(Verdict(job, said))
        except ConfigError as error:
            for issue in error.issues:
                issues.setdefault(issue, []).extend(job.names)
    if issues:
        every = sum(len(job.cells) for job in jobs)
        raise ConfigError(placed(issue, names, every) for issue, names in issues.items())
    return found


def _expected(
    job: Job,
    objective: Objective,
    most_per_pass: int | None,
    place: Place,
    read: dict[str, _Read | ConfigError],
) -> Expected | None:
    """What a job takes, None where its model is not to be had. Raises ``ConfigError`` for faulty rows."""
    config, cells = widest([cell.config for cell in job.cells]), len(job.cells)
    length, packing = (config.trainer.get(key) for key in ("max_length", "packing"))
    key = repr(
        (
            config.recipe,
            config.adapter,
            config.model,
            config.template,
            config.data,
            length,
            packing,
            cells > 1,
        )
    )
    if key not in read:  # once for all jobs with the same rows, whatever the seed that chose them
        try:
            read[key] = _read(config, objective, cells > 1)
        except ConfigError as error:
            read[key] = error
        except RunnerError:
            read[key] = None
    found = read[key]
    if isinstance(found, ConfigError):
        raise found
    if found is None:
        return None
    architecture, rows, classes = found
    steps = optimizer_steps(config, rows.count if rows.known else 0)
    packs = (cells, most_per_pass)
    return expected(config, objective, architecture, rows, place, None, steps, classes, packs)


def _read(config: RunConfig, objective: Objective, in_pack: bool) -> _Read:
    try:
        architecture = find_architecture(config.model)
    except RunnerError:
        return None
    readable = config.data.path and config.data.cache  # without a cache the run would read them once more
    data = read_data(config, objective, config.data) if readable else None
    if data is None:
        return architecture, unread(config, architecture.positions), 2 if objective.head else None
    data.check_held_out()
    packed_to = config.trainer.get("max_length", USUAL_LENGTH) if config.trainer.get("packing") else None
    classes = len(head(config, objective, data) or ()) or None
    return architecture, summary(data, objective, packed_to, in_pack), classes


def _place(on_cuda: bool, gpu: str | None) -> Place:
    """The GPU with the most free memory, asked without torch, whose context would take some of it as long as
    the sweep runs."""
    if gpu and (card := find_card(gpu)):
        return Place(card, card.memory, native="bf16" if card.bf16 else "fp16")
    gpus = found_gpus() if on_cuda and not version("torch").endswith("+cpu") else []
    if gpus:
        card, free = max(gpus, key=lambda each: each[1])
        return Place(card, free, native="bf16" if card.bf16 else "fp16")
    return this_machine()
