"""What is said of the cells of a pack, each for itself."""

from __future__ import annotations

from helpers.command import TINY
from helpers.packs import run_pack
from helpers.rows import ANSWERS


def test_each_cell_has_the_warnings_of_its_own_arguments(tmp_path, capsys):
    cells = [("trainer.learning_rate=1",), ("trainer.warmup_steps=9",), ("trainer.learning_rate=1e-3",)]
    quick = (
        *TINY,
        *ANSWERS,
        "trainer.max_steps=1",
        "generation.samples=0",
        "trainer.warmup_steps=0",
        "data.eval_path=null",
    )
    high, warm, calm = run_pack(tmp_path, quick, cells)
    noted = {
        said: [said in " ".join(run.record["notes"]) for run in (high, warm, calm)]
        for said in ("learning_rate=1 is far above", "the only step has a learning rate of 0")
    }
    assert list(noted.values()) == [[True, False, False], [False, True, False]]
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert "is far above what trains a model (1e-6 to 1e-2) (in 0)" in said
    assert "a learning rate of 0: nothing is trained; trainer.warmup_steps=0, or more steps (in 1)" in said
