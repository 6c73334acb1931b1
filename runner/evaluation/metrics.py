"""Scores of answers against what was expected, as statistics of each row that add up to a score of them all.

That one form serves a share, a corpus BLEU and a held-out loss, and is what resampling needs.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from runner.core.errors import RunnerError
from runner.core.metric_names import find_metric
from runner.core.scripts import bleu_tokenizer, has_spaces, words

Statistics = np.ndarray  # (rows, statistics of a row)


@dataclass(frozen=True)
class Measure:
    """One score of one model: ``score`` turns the summed ``statistics`` into a number.

    ``signature`` is sacrebleu's: all that a number must say to be compared with another (Post 2018).
    """

    name: str
    statistics: Statistics
    score: Callable[[np.ndarray], float]
    signature: str | None = None

    @property
    def value(self) -> float:
        """The score over all rows."""
        return float(self.score(self.statistics.sum(axis=0)))

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return find_metric(self.name).higher


def exact_match(answer: str, expected: str) -> bool:
    """Whether two texts are equal but for white space around them."""
    return answer.strip() == expected.strip()


def json_valid(answer: str, expected: str) -> bool:
    """Whether the answer is one JSON value and nothing else."""
    return is_json(answer)


def is_json(text: str) -> bool:
    """Whether a text is one JSON value and nothing else."""

    def reject(constant: str) -> None:  # NaN and the infinities, which Python reads and JSON does not have
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=reject)
    except (ValueError, RecursionError):
        return False
    return True


def rouge_l(answer: str, expected: str) -> float:
    """ROUGE-L, 0 to 1: the F-measure of the longest common subsequence of words (Lin 2004, equal weights).

    Words are those of ``runner.core.scripts``; the package ``rouge-score`` keeps ASCII letters only, so
    that other scripts always score 0.
    """
    found, wanted = words(answer), words(expected)
    if not found or not wanted:
        return float(found == wanted)
    common = _common_subsequence(found, wanted)
    return 2 * common / (len(found) + len(wanted))


# Scores of single rows whose mean is the score of all: name, and a function of answer and expected.
ROW_SCORES: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "json_valid": json_valid,
}
CORPUS_SCORES = ("chrf", "bleu")
METRICS = (*ROW_SCORES, *CORPUS_SCORES)


def applicable_metrics(expected: Sequence[str]) -> list[str]:
    """The metrics that say something about such answers, the most telling ones first.

    JSON validity only where all of them are JSON; chrF, which needs no words, comes first where a script
    separates none.
    """
    order = METRICS if has_spaces(expected) else ("chrf", *(name for name in METRICS if name != "chrf"))
    return [name for name in order if name != "json_valid" or all(map(is_json, expected))]


def measure(name: str, answers: Sequence[str], expected: Sequence[str]) -> Measure:
    """Score answers by one of ``METRICS``.

    BLEU and chrF are sacrebleu's, at corpus level, from 0 to 100; the others are means from 0 to 1. BLEU's
    tokenizer follows the script of what is expected, and it counts only the n-gram orders that the answers
    are long enough for: the default gives 0 to identical Chinese and to identical answers of one word.
    """
    if name in ROW_SCORES:
        return mean_of(name, ROW_SCORES[name], answers, expected)
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu = name == "bleu"
    scorer: Any = BLEU(tokenize=bleu_tokenizer(expected), effective_order=True) if bleu else CHRF()
    # the statistics that sacrebleu itself resamples; its public functions give only the score of them all
    rows = np.array(scorer._extract_corpus_statistics(list(answers), [list(expected)]))
    signed = str(scorer.get_signature())
    return Measure(name, rows, lambda sums: scorer._compute_score_from_stats(sums.tolist()).score, signed)


def mean_of(
    name: str, function: Callable[[str, str], float], answers: Sequence[str], expected: Sequence[str]
) -> Measure:
    """A score that is the mean of a function of each row."""
    pairs = zip(answers, expected, strict=True)
    return ratio(name, [(float(function(answer, right)), 1.0) for answer, right in pairs])


def ratio(name: str, rows: Sequence[tuple[float, float]]) -> Measure:
    """A score that is one sum over another, such as loss over tokens."""
    return Measure(name, np.array(rows, dtype=float), lambda sums: sums[0] / max(sums[1], 1e-12))


def load_function(place: str) -> Callable[[str, str], float]:
    """The function that ``FILE.py:NAME`` names; running the file is intended.

    Raises ``TypeError`` where it does not take an answer and what is expected, ``RuntimeError`` where the
    file ends the process, and whatever else the file raises.
    """
    file, _, name = place.rpartition(":")
    spec = spec_from_file_location("runner_user_metric", Path(file).expanduser())
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise RuntimeError(f"it ends the process with {error.code!r}") from error
    function = getattr(module, name)
    signature(function).bind("answer", "expected")
    return _scored(place, function)


def _scored(place: str, function: Callable[[str, str], Any]) -> Callable[[str, str], float]:
    """A function of the user's own whose value is a number; raises ``RunnerError`` for any other."""

    def score(answer: str, expected: str) -> float:
        try:
            value = function(answer, expected)
        except SystemExit as error:  # its code would be taken for that of the run
            raise RunnerError(f"{where} ends the process with {error.code!r}") from error
        number = _number(value)
        if not math.isfinite(number):
            raise RunnerError(f"{where} gives {value!r:.80}, not a number, for {answer!r:.80}")
        return number

    where = f"evaluate.function={place}"
    return score


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyro 2004): a table's row is one integer."""
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    whole = (1 << len(first)) - 1
    row = whole
    for word in second:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & whole
    return len(first) - row.bit_count()
