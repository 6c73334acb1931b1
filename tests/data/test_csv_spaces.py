"""Spaces behind the separators of a table: in its header, and before the quotes of its cells."""

from pathlib import Path

import pytest

from helpers.prepared import prepared, refusal, trained

SKIPPED = "the spaces behind its separators belong to no cell, as in its header"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("between", [",", ";", "\t", "|"], ids=repr)
@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("prompt,~completion", "q,~a", "a"),
        ("prompt,~completion", 'q,~"a,~b"', "a,~b"),
        ("prompt,~completion", '"q",~"a ""b"""', 'a "b"'),
        ('"prompt",~"completion"', '"q",~"a,~b"', "a,~b"),
        ("prompt,~~ completion", 'q,~~"a"', "a"),
        ('\ufeffprompt,~"completion"', 'q,~"a\nb"', "a\nb"),
    ],
)
def test_a_header_with_spaces_is_read_as_written(
    tmp_path: Path, between: str, header: str, row: str, said: str
) -> None:
    header, row, said = (text.replace(",", between).replace("~", " ") for text in (header, row, said))
    file = tmp_path / "a.csv"
    file.write_text(f"{header}\n{row}\n")
    data = prepared(file)
    assert trained(data.train) == [said]
    assert f"{file}: {SKIPPED}" in data.notes


def test_spaces_elsewhere_are_text(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('prompt ,completion\nq, a\nr," b"\n')
    data = prepared(file)
    assert trained(data.train) == [" a", " b"]
    assert data.notes == []


def test_quotes_behind_a_space_are_said(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('prompt,completion\nq, "a"\nr,b\n')
    data = prepared(file)
    assert trained(data.train) == [' "a"', "b"]
    said = 'a space before a quote makes the quotes part of the text, as in  "a"'
    assert data.notes == [f"{file}: {said}; with a space in the header too they quote"]
    file.write_text('prompt,completion\nq, "a, b"\n')
    said = "a.csv:2: has 3 cells, but the header names 2 columns\n    no space before a quote"
    assert said in refusal(file)
