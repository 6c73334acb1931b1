"""Row 27: kill -9 in every phase of a merge and an export."""

from __future__ import annotations

import pytest

from helpers.kills import SFT, Point, finished, killed, weights

MERGE_POINTS = [
    Point("recipes.merge:check_merge"),
    Point("recipes.merge:rows_to_compare"),
    Point("recipes.merge:load_model"),
    Point("recipes.merge:write_model"),
    Point("recipes.merge:write_model", after=True),
    Point("recipes.merge:compare"),
    Point("recipes.merge:merged_card"),
    Point("recipes.merge:_hand_over"),
    Point("runner.runs.run_folder:RunFolder.finish"),
]
EXPORT_POINTS = [
    Point("runner.export.api:export_model"),
    Point("runner.export.gguf.writer:write_gguf"),
    Point("runner.export.gguf.writer:write_gguf", after=True),
    Point("runner.runs.run_folder:RunFolder.finish"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("export", "point"),
    [*((False, point) for point in MERGE_POINTS), *((True, point) for point in EXPORT_POINTS)],
    ids=str,
)
def test_27_kill_9_in_every_phase_of_a_merge(tmp_path, trained, export, point):
    """A merge has nothing to resume: it starts again in a folder of its own, and the folder of the one that
    was killed holds no model that is not whole."""
    source = trained(*SFT, "trainer.max_steps=2")
    words = ("recipe=merge", f"adapter={source}", *(["export=gguf"] if export else []))
    finished(tmp_path, (*words, "output_dir=whole"))
    killed(tmp_path, (*words, "output_dir=cut"), point)
    finished(tmp_path, (*words, "output_dir=again"))
    whole, again, cut = (weights(tmp_path / name) for name in ("whole", "again", "cut"))
    assert whole
    assert again == whole
    assert all(content == whole[name] for name, content in cut.items())
