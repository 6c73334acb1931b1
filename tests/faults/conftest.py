"""What tests of faulty files share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def made(cli: Any) -> Callable[[str, bytes], str]:
    """Write a file in the folder of the command and return its name."""

    def write(name: str, content: bytes) -> str:
        Path(name).write_bytes(content)
        return name

    return write
