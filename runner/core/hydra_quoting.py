"""Values of Hydra overrides as Hydra's grammar reads them back."""

from __future__ import annotations

import re


def hydra_value(text: str) -> str:
    """A text as Hydra reads it in an override: quoted where it holds more than plain characters."""
    if re.fullmatch(r"[\w./+-]+", text, flags=re.ASCII):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
