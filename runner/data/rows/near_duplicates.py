"""Texts that are nearly those of earlier ones: MinHash signatures in a locality-sensitive index."""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Iterable

import numpy as np
import xxhash

from runner.core.errors import ConfigError, Issue
from runner.core.scripts import words

_WORDS = 3  # in a sequence: of two texts that share few of these nobody would say that they are alike
_HASHES = 128  # of a signature: the similarity that it estimates is off by 0.04 on average at 0.8


def check_installed() -> None:
    """Raise ``ConfigError`` without datasketch (MIT; it needs numpy and scipy only)."""
    if importlib.util.find_spec("datasketch") is None:
        hint = "pip install 'recipe-runner[near-duplicates]', or data.deduplicate=exact"
        raise ConfigError(Issue("data.deduplicate=near", "needs the package datasketch", hint))


def near_duplicates(texts: Iterable[str], similarity: float) -> np.ndarray:
    """Which texts [texts] have an estimated Jaccard similarity of at least this with an earlier one.

    It compares the sets of their three-word sequences, without case. An earlier text that is itself a near
    duplicate is not compared with, so that a chain of small changes does not end at something else.
    """
    from datasketch import MinHash, MinHashLSH

    # the index finds pairs below the threshold too, and misses few above: the signatures decide
    index = MinHashLSH(threshold=max(0.1, similarity - 0.1), num_perm=_HASHES)
    signatures: dict[Hashable, MinHash] = {}
    found: list[bool] = []
    for number, text in enumerate(texts):
        signature = MinHash(num_perm=_HASHES, hashfunc=xxhash.xxh32_intdigest)
        signature.update_batch(_sequences(text))
        near = any(signature.jaccard(signatures[other]) >= similarity for other in index.query(signature))
        found.append(near)
        if not near:
            index.insert(number, signature)
            signatures[number] = signature
    return np.array(found, bool)


def _sequences(text: str) -> list[bytes]:
    found = words(text) or [text]
    count = max(1, len(found) - _WORDS + 1)
    return [" ".join(found[at : at + _WORDS]).encode() for at in range(count)]
