"""What Linux and macOS have and native Windows has not, so that only the parts that need it stop there."""

from __future__ import annotations

import os
import signal
from typing import Any

try:
    import fcntl as _fcntl
    import resource as _resource
except ModuleNotFoundError:  # native Windows
    _fcntl = _resource = None

fcntl: Any = _fcntl  # None without it
resource: Any = _resource
POSIX = os.name == "posix"
# The signal that ends a process whatever it does; where there is none, the one that Windows ends it by.
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
