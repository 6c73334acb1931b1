"""Held-out rows that belong to another task than those that are trained on: a score on them says nothing."""

from __future__ import annotations

from runner.config.settings import DataSettings

_EMBEDDED = "embedded:"


def foreign_rows(data: DataSettings) -> str:
    """A warning where the embedded rows are held out for rows of the user's own; empty otherwise.

    ``data.path=rows.jsonl`` alone replaces one key of ``data=orders``, whose held-out rows stay.
    """
    if not str(data.eval_path).startswith(_EMBEDDED) or _EMBEDDED in str(data.path):
        return ""
    advice = "data=file data.path=... takes your rows alone, data.eval_split=0.1 holds out some of them"
    return f"the rows of {data.path} are scored on {data.eval_path}, which is another task: {advice}"
