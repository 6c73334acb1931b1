"""The label of a row: whether its answer was liked, or the class of its text."""

from __future__ import annotations

from typing import Any

from runner.data.rows.read_row import ReadRow
from runner.data.rows.values import BadRow, ClassNumber, shown


def liked(row: ReadRow) -> bool:
    """Whether an answer was liked. Raises ``BadRow``."""
    value = _whole(row.get("label"))
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if str(value).lower() not in known:
        raise BadRow(f"'label' must be true or false, got {shown(value)}")
    return known[str(value).lower()]


def class_of(row: ReadRow) -> str:
    """The name of a text's class. Raises ``BadRow``."""
    value = _whole(row.get("label"))
    if isinstance(value, ClassNumber):
        value = value.name
    if not isinstance(value, (str, int)) or not str(value).strip():
        raise BadRow(f"'label' must be the name or number of a class, got {shown(value)}")
    return str(value).strip()


def _whole(value: Any) -> Any:
    """1 for 1.0, as which tables hold whole numbers in a column with gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
