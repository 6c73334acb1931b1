"""Every family of conf/model goes through every method, or is refused by name."""

import json
from pathlib import Path

import pytest

from families.page import OUTCOMES, page, presets_of
from families.proof import Proof
from helpers.paths import ROOT
from helpers.tiny_model import KINDS

_DEFAULT = ("qwen3", "lfm2")


@pytest.mark.parametrize(
    "kind", [kind if kind in _DEFAULT else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_family_goes_through_every_method(cli, tmp_path, capsys, monkeypatch, kind):
    proof = Proof(kind, tmp_path, cli, lambda: capsys.readouterr().err, monkeypatch)
    found = proof.outcomes()
    assert found == json.loads(OUTCOMES.read_text(encoding="utf-8"))[kind]


def test_every_model_is_of_a_family_that_is_tested():
    assert set(presets_of()) <= KINDS.keys()
    assert json.loads(OUTCOMES.read_text(encoding="utf-8")).keys() == KINDS.keys()


def test_the_page_in_docs_is_what_the_tests_assert():
    text = Path(ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert text == page(), "python -m families.page > docs/coverage.md, in tests"
