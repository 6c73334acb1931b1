"""The digest of code changes with what the code does, and with nothing else."""

from pathlib import Path

import pytest

from runner.core.code_digest import _digest, code_digest

CODE = '''"""About the file."""


class Thing:
    """About the class."""

    def double(self, number: int = 2) -> int:
        """About the function."""
        return number * 2  # about the line
'''


def digest(folder: Path, code: str = CODE, name: str = "thing.py") -> str:
    file = folder / "room" / "inner" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code, encoding="utf-8")
    _digest.cache_clear()  # a process reads each file once
    found = code_digest([folder / "room"])
    file.unlink()
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""About the file."""\n', ""),
        ("About the class.", "Something else,\n    over two lines."),
        ('"""About the function."""\n        ', ""),
        ("  # about the line", ""),
        ("number * 2", "(\n            number * 2\n        )"),
    ],
)
def test_words_and_formatting_do_not_count(tmp_path: Path, before: str, after: str) -> None:
    assert before in CODE
    assert digest(tmp_path, CODE.replace(before, after)) == digest(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [("number * 2", "number * 3"), ("= 2", "= 1"), ("double", "twice"), ("int =", "float =")],
)
def test_code_counts(tmp_path: Path, before: str, after: str) -> None:
    assert before in CODE
    assert digest(tmp_path, CODE.replace(before, after)) != digest(tmp_path)


def test_names_of_files_count_and_the_place_does_not(tmp_path: Path) -> None:
    assert digest(tmp_path, name="other.py") != digest(tmp_path)
    assert digest(tmp_path / "elsewhere") == digest(tmp_path)
