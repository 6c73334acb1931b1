"""Exit codes, config issues and the errors whose message is meant for the user."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """The process exit codes of every command."""

    COMPLETED = 0
    FAILED = 1
    CONFIG_ERROR = 2
    DIVERGED = 3
    PREEMPTED = 75


@dataclass(frozen=True)
class Issue:
    """One config or data error: where it is, what is wrong, and what to do instead.

    ``where`` is a file (with line) or an override as it was typed; ``hint`` names what is allowed or the
    nearest right name.
    """

    where: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" + (f"\n    {self.hint}" if self.hint else "")


class RunnerError(Exception):
    """An error whose message is meant for the user; ``code`` becomes the exit code."""

    code = ExitCode.FAILED


class ConfigError(RunnerError):
    """Config or data errors, found before anything was loaded; ``issues`` are all that were found."""

    code = ExitCode.CONFIG_ERROR

    def __init__(self, issues: Iterable[Issue] | Issue) -> None:
        self.issues = [issues] if isinstance(issues, Issue) else list(issues)
        super().__init__("\n".join(str(issue) for issue in self.issues))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[Issue]]]:
        return type(self), (self.issues,)  # by default pickle would give the text for the issues


class Diverged(RunnerError):
    """The loss or the weights stopped being finite."""

    code = ExitCode.DIVERGED


# What people type and the libraries call by a longer name, too far apart to be found by likeness.
_SHORT_NAMES = {
    "alpha": "lora_alpha",
    "batch_size": "per_device_train_batch_size",
    "dropout": "lora_dropout",
    "epochs": "num_train_epochs",
    "grad_accum": "gradient_accumulation_steps",
    "lr": "learning_rate",
    "rank": "r",
    "scheduler": "lr_scheduler_type",
}


def nearest(name: object, allowed: Iterable[str], limit: int = 12, prefix: str = "") -> str:
    """Say what is allowed instead of ``name``: the nearest right one, or the whole list when it is short.

    ``prefix`` stands before the nearest one (``lora.`` for a key of that section).
    """
    names = sorted(set(allowed))
    if (meant := _SHORT_NAMES.get(str(name))) in names:
        return f"did you mean {prefix + str(meant)!r}?"
    lowered = {candidate.lower(): candidate for candidate in names}
    close = get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    if close:
        return f"did you mean {prefix + lowered[close[0]]!r}?"
    shown = ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
    return f"allowed: {shown}" if names else ""
