"""Loss flags: which messages and rows their file marks as not trained, in the spellings that tools use.

``weight`` (OpenAI, Mistral), ``loss`` (ms-swift, XTuner), ``loss_weight`` (LLaMA-Factory), ``train``,
``training`` and ``trainable`` (axolotl, which lets the config name the key), ``masked`` (torchtune),
``calculate_loss``. They are recognised word by word, so that a spelling like ``should_train`` or
``no_loss`` is one too. What looks like a flag and cannot be understood is refused by its name: to pass over
it would train what was marked not to be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from runner.data.rows.values import BadRow, is_given, shown

_LEARNT = {"loss", "train", "trained", "training", "trainable", "weight", "learn", "learnt", "learned"}
_LEARNT |= {"learnable", "supervise", "supervised", "weights", "losses"}
_MASKED = {"mask", "masked", "masks"}
_LEFT_OUT = {"ignore", "ignored", "skip", "skipped", "exclude", "excluded"}
_NOT = {"no", "not", "without", *_LEFT_OUT}
_FILLER = {
    "is",
    "be",
    "to",
    "on",
    "in",
    "for",
    "with",
    "has",
    "use",
    "do",
    "need",
    "should",
    "include",
    "this",
}
_FILLER |= {"turn", "message", "msg", "output", "calculate", "calc", "compute", "from", "only", "field"}

_VALUES = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@cache
def _meaning(key: str) -> bool | None:
    """Whether a true value of this key means that the message is trained; None if the key is no flag.

    Raises ``LookupError`` for a key that looks like one and has no certain meaning.
    """
    words = re.findall(r"[a-z]+|[0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).lower())
    learnt, masked = _LEARNT & set(words), _MASKED & set(words)
    if not learnt and not masked:
        return False if len(words) == 1 and words[0] in _LEFT_OUT else None
    # of a loss_mask some tools keep the ones and others the zeros; train_detail marks parts of an answer
    unknown = set(words) - _LEARNT - _MASKED - _NOT - _FILLER
    if unknown or (learnt and words[-1] in ("mask", "masks")):
        raise LookupError(key)
    return bool(masked) == bool(_NOT & set(words))


def message_flag(item: dict[str, Any], where: str) -> tuple[bool | None, set[str]]:
    """Whether a message's flags say that it is trained (None: they say nothing), and the keys that were read.

    Raises ``BadRow`` for a flag that is neither true nor false, and for flags that contradict each other.
    """
    said: dict[bool, str] = {}
    keys: set[str] = set()
    for key, value in item.items():
        try:
            meaning = _meaning(str(key))
        except LookupError:
            if not is_given(value):
                continue
            message = f"{where}.{key} looks like a mark of what is trained, and its meaning is not known"
            raise BadRow(f"{message}; allowed: weight, loss, train or masked, each true or false") from None
        if meaning is None:
            continue
        keys.add(key)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            raise BadRow(f"{where} has the {key} {shown(value)}; allowed: 0 (only read) or 1 (learnt)")
        said[bool(value) == meaning] = key
    if len(said) == 2:
        raise BadRow(f"{where} is trained by its {said[True]!r} and not by its {said[False]!r}")
    return next(iter(said), None), keys


def row_flag(row: dict[str, Any], unread: Iterable[str]) -> tuple[bool | None, set[str]]:
    """Whether a row's columns say that it is trained (None: they say nothing), and those that say so.

    Only 0, 1, true and false are flags, also as text: the column of a data set that is called ``loss`` may as
    well hold what was measured. A ``weight`` that is another number is refused: it is a sample weight, which
    is not applied. Raises ``BadRow``.
    """
    said: dict[bool, str] = {}
    for key in unread:
        value = row.get(key)
        try:
            meaning = _meaning(key)
        except LookupError:
            continue
        if meaning is None or value is None:
            continue
        flag = _VALUES.get(str(value).strip().lower())
        if key == "weight" and flag is None and _is_number(value):
            hint = "rows are taken or not; a source's weight takes its rows more often"
            raise BadRow(f"has the weight {shown(value)}; allowed: 0 (not trained) or 1; {hint}")
        if flag is None or (isinstance(value, float) and key != "weight"):
            continue
        said[flag == meaning] = key
    if len(said) == 2:
        raise BadRow(f"is trained by its {said[True]!r} and not by its {said[False]!r}")
    return next(iter(said), None), set(said.values())


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
