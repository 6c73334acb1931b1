"""What a person sees in the terminal: colours and a live line there, plain text when it is not a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

from runner.errors import Problem

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def refused(problems: Iterable[Problem]) -> None:
    """Print all mistakes of a command, before anything was loaded."""
    problems = list(problems)
    err.print(f"[bold red]refused[/], {len(problems)} mistake{'s' * (len(problems) != 1)}, nothing was loaded:")
    for problem in problems:
        err.print(f"  [bold]{escape(problem.where)}[/]: {escape(problem.message)}")
        if problem.hint:
            err.print(f"      [green]{escape(problem.hint)}[/]")


def note(text: str) -> None:
    """Say something that a user should know and that is no mistake."""
    out.print(f"[yellow]note[/] {escape(text)}")
