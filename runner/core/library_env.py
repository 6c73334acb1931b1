"""The environment variables that the libraries read when they are imported."""

from __future__ import annotations

import os

_VARIABLES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # no usage statistics leave the machine
    "TOKENIZERS_PARALLELISM": "false",  # its threads warn, or hang, after a fork
    # the runner prints its own messages and progress
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",  # the recipe says that it is experimental
}


def set_library_env() -> None:
    """Set them, unless the user has; call it before anything imports one of the libraries."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
