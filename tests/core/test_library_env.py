"""What the libraries are told by the environment."""

import subprocess
import sys

BAR = """
from runner.core.library_env import set_library_env
set_library_env()
from tqdm.auto import tqdm
list(tqdm(range(3)))
"""


def test_no_bar_of_a_library_is_written_into_a_file():
    found = subprocess.run([sys.executable, "-c", BAR], capture_output=True, check=True)
    assert found.stderr == b""
