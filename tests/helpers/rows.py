"""Rows of a few dozen tokens each, of uneven length: where the numbers matter, not what is learnt."""

from pathlib import Path

FOLDER = Path(__file__).parent / "rows"


def words_of(name: str) -> tuple[str, ...]:
    """The words that choose ``answers`` (23 rows) or ``pairs`` (11), with held-out rows of their own."""
    files = (f"data.path={FOLDER / name}.jsonl", f"data.eval_path={FOLDER / name}_held_out.jsonl")
    return ("data=file", *files, "data.max_rows=null", "data.eval_max_rows=null")


ANSWERS = words_of("answers")
PAIRS = words_of("pairs")
