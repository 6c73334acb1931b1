"""The merges of a byte-pair vocabulary that is published as tokens with priorities."""

from __future__ import annotations

from collections.abc import Mapping


def merges_of(priorities: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a third one, that with the least priority first.

    tiktoken and SentencePiece merge any two neighbours that make a token, whichever comes first by its
    priority. ``tokenizers`` merges listed pairs only: all ways to cut a token have to be listed.
    """
    found = []
    for token, priority in priorities.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in priorities and right in priorities:
                found.append((priority, len(left), left, right))
    return [(left, right) for _, _, left, right in sorted(found)]
