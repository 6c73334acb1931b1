"""The environment variables that the libraries read when they are imported."""

from __future__ import annotations

import os
import sys

_VARIABLES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # no usage statistics leave the machine
    "TOKENIZERS_PARALLELISM": "false",  # its threads warn, or hang, after a fork
    # the runner prints its own messages and progress
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",  # the recipe says that it is experimental
}


# Blocks that grow instead of new ones beside them: on an H200, the CUDA graphs of Alpaca rows in batches of 8
# held 16.9 GiB so, and 22.4 GiB without (Qwen3-1.7B over NF4). torch has it on Linux only.
_GROWING = "expandable_segments:True"
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the name before torch 2.9


def set_library_env() -> None:
    """Set them, unless the user has; call it before anything imports one of the libraries."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():  # in a file, a bar is a line that grows
        os.environ.setdefault("TQDM_DISABLE", "1")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = _GROWING
