"""Numbers and other values as a person writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from runner.core.metric_names import find_metric

UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "bytes": ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"), (0, " B")),
    "parameters": ((1e9, " billion"), (1e6, " million")),
}


def format_value(value: Any, key: str = "") -> str:
    """A value as a person writes it; ``key`` says what a number measures (seconds, bytes, a share)."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {text}" for name, text in flatten(value)) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) for item in value) or "–"
    if not isinstance(value, (int, float)):
        return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(Z|\+00:00)$", r"\1 \2 UTC", str(value))
    if not math.isfinite(to_number(value)):
        return "NaN" if value != value else "∞" if value > 0 else "−∞"
    for size, unit in UNITS.get(key.rpartition("_")[2], ()):
        if abs(value) >= size:
            return f"{float(f'{value / (size or 1):.3g}'):,g}{unit}"
    if key.endswith("seconds") and value >= 0:
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        long = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
        return f"{value:.1f} s" if value < 59.95 else long
    if 0 <= value <= 1 and find_metric(key).share:
        return f"{value * 100:.1f}".removesuffix(".0") + " %"
    whole = value == int(value) or abs(value) >= 10_000
    text = f"{value:,.0f}" if whole and abs(value) < 1e12 else f"{value:.4g}"
    return re.sub(r"e([+-])0*", lambda match: f"e{match[1]}".replace("+", ""), text).replace("-", "−")


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Rows of (dotted key, text) from nested mappings."""
    rows: list[tuple[str, str]] = []
    for name, item in value.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        rows += flatten(item, key) if isinstance(item, Mapping) and item else [(key, format_value(item, key))]
    return rows


def to_number(value: Any) -> float:
    """The value as a float; NaN when it is not a number."""
    try:
        return float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        return math.nan
