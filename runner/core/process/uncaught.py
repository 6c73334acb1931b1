"""What a process prints of an error that nobody catches."""

from __future__ import annotations

import sys
from types import TracebackType


def set_excepthook() -> None:
    """From now on such an error is printed without secrets, and Ctrl-C as one word.

    To be called before the libraries are imported: that takes seconds, in which people press Ctrl-C.
    """
    sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
        return
    import traceback

    from runner.core.secrets import masked

    sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))
