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

# transformers imports these where they are installed, for losses and searches that nothing here uses.
_UNUSED = ("scipy", "sklearn")


@contextmanager
def importing() -> Iterator[None]:
    """Import the libraries in this block, without collecting garbage; what they are made of never is any.

    They find no package that is ``_UNUSED``, and hear once which ones are installed: the answer, for which
    transformers and TRL both ask, took 1 s on a machine with 250. The block saves time and nothing else.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    hidden = {name: None for name in _UNUSED if name not in sys.modules}
    metadata: Any = importlib.metadata
    asked = metadata.packages_distributions
    gc.disable()
    sys.modules.update(hidden)  # pyright: ignore[reportCallIssue, reportArgumentType]
    metadata.packages_distributions = functools.cache(asked)
    try:
        yield
        gc.freeze()
    finally:
        metadata.packages_distributions = asked
        for name in hidden:
            del sys.modules[name]
        gc.enable()


def leave_at_exit() -> None:
    """Let the system take the memory of this process when it ends, behind all that is to be done then."""
    atexit.register(gc.disable)
    atexit.register(gc.freeze)
