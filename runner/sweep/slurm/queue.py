"""What SLURM says of the jobs that a sweep has submitted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.core.atomic import json_text, write_atomically
from runner.core.errors import ConfigError, Issue

# In these states a job is not started any more; one that is to be requeued is in none of them.
_FINAL = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
_FIELDS = "%j|%K|%i|%T|%r"  # name, index in its array, id, state, reason


@dataclass(frozen=True)
class Entry:
    """A task that SLURM has or had: its ``id`` (``4711_0``), its state, and the reason why it waits."""

    id: str
    state: str
    reason: str

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.state in _FINAL

    @property
    def begun(self) -> bool:
        """Whether it has been given a node."""
        return self.state in ("RUNNING", "COMPLETING")


@dataclass(frozen=True)
class Held:
    """Where SLURM has a job of the sweep: the array it was submitted in, its index there, and its entry."""

    array: str
    index: int
    entry: Entry


def record(folder: Path, name: str, jobs: Sequence[str]) -> None:
    """Write down, before it is submitted, which jobs of the sweep are the tasks of the array ``name``.

    By the name it is found in SLURM's queue, also where this process is killed before it was told an id.
    """
    write_atomically(folder / f"{name}.json", json_text(list(jobs)))


def recorded(folder: Path) -> dict[str, list[str]]:
    """The jobs of each array that was written down."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def ask(arrays: Iterable[str]) -> dict[tuple[str, int], Entry]:
    """The tasks of arrays by name and index, as far as SLURM knows them still.

    Raises ``OSError`` where it does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", f"--name={','.join(arrays)}"]
    done = subprocess.run([*command, f"--format={_FIELDS}"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(done.stderr.strip())
    found = {}
    for line in done.stdout.splitlines():
        name, index, number, state, reason = line.split("|", 4)
        found[name, int(index) if index.isdigit() else 0] = Entry(number, state, reason)
    return found


def held(folder: Path) -> dict[str, Held]:
    """By name the submitted jobs that SLURM still runs, or will; ``folder`` is that of the records.

    Raises ``ConfigError`` where SLURM does not answer.
    """
    arrays = recorded(folder)
    try:
        entries = ask(arrays) if arrays else {}
    except OSError as error:
        message = f"jobs of it were given to SLURM, which does not answer now: {error}"
        raise ConfigError(Issue(str(folder.parents[1]), message, "try again when squeue answers")) from error
    return {
        arrays[name][index]: Held(name, index, entry)
        for (name, index), entry in entries.items()
        if not entry.over and index < len(arrays[name])
    }
