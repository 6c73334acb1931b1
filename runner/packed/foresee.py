"""What a pack will take, said and recorded before its base is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.config.objective import Objective
from runner.data.splits import Data
from runner.packed.cell import CellRun
from runner.plan.expected import Expected
from runner.plan.packs import widest
from runner.reports import terminal
from runner.training.load import foresee, rows_of
from runner.training.setup import TrainingSetup, opening_notes


def foresee_pack(
    cells: Sequence[CellRun],
    objective: Objective,
    setup: TrainingSetup,
    data: Mapping[str, Data],
    steps: int,
    most_per_pass: int | None,
) -> Expected | None:
    """Print the opening of a pack with its expected peak and time, and record these in its cells.

    None where they are not known, and the cells begin one by one. Raises ``ConfigError`` for a pack of which
    not even one cell a pass fits its GPU.
    """
    own = data[cells[0].name]
    rows = rows_of(setup, own, objective, in_pack=True)
    config = widest([cell.config for cell in cells])
    folders = [cell.folder for cell in cells]
    found = foresee(config, objective, setup, rows, folders, steps, most_per_pass=most_per_pass)
    counts = (len(cells), found.cells_per_pass if found else 1)
    expected = found.line() if found else ""
    said = (setup.pieces.line(), _notes(cells), expected, setup.adapted_line())
    terminal.pack_opening(own, setup.method_line(cells[0].config), counts, steps, *said)
    return found


def _notes(cells: Sequence[CellRun]) -> list[str]:
    """The warnings of all cells, each once, with the cells that have it unless all do."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        for note in opening_notes(cell.config, cell.folder):
            found.setdefault(note, []).append(cell.name)
    return [note + _where(names, len(cells)) for note, names in found.items()]


def _where(names: Sequence[str], every: int) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f" (in {names[0]}{more})" if len(names) < every else ""
