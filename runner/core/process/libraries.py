"""The libraries of a process, imported and left in less time.

torch, transformers and the others are hundreds of thousands of objects. The garbage collector goes through
them again and again, for 1.6 of the 12 s of their import and for 4 s at the end (2 cores, Python 3.11).
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def importing(last: str) -> Iterator[None]:
    """Import libraries in this block, without collecting garbage; what they are made of never is any.

    They hear once which packages are installed: the answer, for which transformers and TRL both ask, took 1 s
    on a machine with 250. Where the ``last`` of them is there already the block does nothing.
    """
    if last in sys.modules or not gc.isenabled():
        yield
        return
    metadata: Any = importlib.metadata
    asked = metadata.packages_distributions
    gc.disable()
    metadata.packages_distributions = functools.cache(asked)
    try:
        yield
        gc.freeze()
    finally:
        metadata.packages_distributions = asked
        gc.enable()


def leave_at_exit() -> None:
    """Let the system take the memory of this process when it ends, behind all that is to be done then."""
    atexit.register(gc.disable)
    atexit.register(gc.freeze)
