"""The terminal: colours and live lines there, plain text elsewhere, and how a command ends badly."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from runner.core.errors import Issue
from runner.core.secrets import masked


class _Terminal(Console):
    """A console that writes no secret, whatever it is asked to print."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, with every secret in a text replaced."""
        super().print(*(masked(each) if isinstance(each, str) else each for each in objects), **options)


out = _Terminal(highlight=False, soft_wrap=True)
err = _Terminal(stderr=True, highlight=False, soft_wrap=True)


def config_errors(issues: Iterable[Issue]) -> None:
    """Print all mistakes of a command, before anything was loaded."""
    issues = list(issues)
    err.print(f"[bold red]refused[/], {len(issues)} mistake{'s' * (len(issues) != 1)}, nothing was loaded:")
    for issue in issues:
        err.print(f"  [bold]{escape(issue.where)}[/]: {escape(issue.message)}")
        if issue.hint:
            err.print(f"      [green]{escape(issue.hint)}[/]")


def failed(message: str, folder: Path, details: bool = False) -> None:
    """Say that a run failed, and where its record is."""
    err.print(f"[bold red]failed[/] {escape(message)}")
    err.print(f"  {'the traceback is' if details else 'see'} in {escape(str(folder / 'run.json'))}")


def preempted(message: str, folder: Path) -> None:
    """Say that a run was asked to end, and how it goes on."""
    err.print(f"[bold yellow]preempted[/] {escape(message)}")
    err.print(f"  go on with the same command and output_dir={escape(shlex.quote(str(folder)))} resume=auto")


def heading(text: str) -> None:
    """Begin a part of a longer command."""
    out.print(f"\n[bold]── {escape(text)}[/]")


def warn(text: str) -> None:
    """Say something that a user should know and that is no mistake."""
    out.print(f"[yellow]note[/] {escape(text)}")
