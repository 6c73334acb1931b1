"""The consoles of all output: colours and live lines on a terminal, plain text elsewhere, secrets masked."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table as _RichTable

from runner.core.errors import Issue
from runner.core.secrets import masked

_PIPED = 10_000  # columns of what is no terminal: a path in one line can be searched for and copied


class Table(_RichTable):
    """Columns without lines; what is too long for its column goes on below: no path or number is cut off."""

    def __init__(self, padding: tuple[int, int, int, int] = (0, 2, 0, 0), show_header: bool = True) -> None:
        super().__init__(box=None, padding=padding, show_header=show_header)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for column in self.columns:
            column.overflow = "fold"
        return super().__rich_console__(console, options)


class _Terminal(Console):
    """A console that masks secrets in whatever it prints."""

    @property
    def options(self) -> ConsoleOptions:
        """How to print: as wide as the terminal, where it is one."""
        return super().options if self.is_terminal else super().options.update(width=_PIPED)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, with every secret in a text replaced."""
        super().print(*(masked(each) if isinstance(each, str) else each for each in objects), **options)

    def on_broken_pipe(self) -> None:
        """Go on in silence where nobody reads any more (``| head``): a run is worth more than its lines."""
        self.quiet = True
        discard(self.file)


def discard(stream: IO[str]) -> None:
    """Send what is still written to a stream to nowhere; Python writes its buffer when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def silence() -> None:
    """Print nothing more: another process of the run says it."""
    out.quiet = err.quiet = True


_LONGEST = 4000  # characters of one message on the terminal


out = _Terminal(highlight=False, soft_wrap=True)
err = _Terminal(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def messages_to_stderr(apart: bool) -> Iterator[None]:
    """Print all messages of this block to stderr, where ``apart``: an answer that is piped stands alone."""
    before, out.stderr = out.stderr, apart
    try:
        yield
    finally:
        out.stderr = before


@contextmanager
def answering() -> Iterator[Callable[[str], None]]:
    """Give what writes a model's words to stdout, as they are and at once.

    The block ends in silence where nobody reads any more.
    """

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        yield write
    except BrokenPipeError:
        discard(sys.stdout)


def config_errors(issues: Iterable[Issue]) -> None:
    """Print all config errors of a command, found before anything was loaded."""
    issues = list(issues)
    err.print(f"[bold red]{len(issues)} config error{'s' * (len(issues) != 1)}[/], nothing was loaded:")
    for issue in issues:
        where, message, hint = (_bounded(text) for text in (issue.where, issue.message, issue.hint))
        err.print(f"  [bold]{escape(where)}[/]: {escape(message)}")
        if hint:
            err.print(f"      [green]{escape(hint)}[/]")


def _bounded(text: str) -> str:
    """A text without its middle where it is very long, as a name of a million letters in a file makes it."""
    left_out, half = len(text) - _LONGEST, _LONGEST // 2
    return text if left_out <= 0 else f"{text[:half]} ... {left_out:,} more ... {text[-half:]}"


def failed(message: str, folder: Path, details: bool = False) -> None:
    """Print why a run failed, and where its record is."""
    err.print(f"[bold red]failed[/] {escape(message)}")
    err.print(f"  {'the traceback is' if details else 'see'} in {escape(str(folder / 'run.json'))}")


def preempted(message: str, folder: Path, resumable: bool | None) -> None:
    """Print that a run was ended by a signal, and the command that resumes it, where there is one; None where
    what started the run says how it is resumed."""
    err.print(f"[bold yellow]preempted[/] {escape(message)}")
    if resumable is None:
        return
    if not resumable:
        err.print("  this recipe leaves nothing to resume from: start the same command again")
        return
    err.print(f"  resume with the same command and output_dir={escape(shlex.quote(str(folder)))} resume=auto")


def heading(text: str) -> None:
    """Print the heading of a part of a longer command."""
    out.print(f"\n[bold]── {escape(text)}[/]")


def warn(text: str) -> None:
    """Print a warning: something that a user should know and that does not stop the run."""
    out.print(f"[yellow]warning[/] {escape(text)}")
