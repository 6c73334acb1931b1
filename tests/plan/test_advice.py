"""What ``recipe=plan`` advises, planned again: as many rows a step, in the memory that it said."""

import json
import re
import shlex

import pytest

GIB = 2**30
LARGE = ("model=qwen3-8b", "lora=r16", "trainer.gradient_checkpointing=true", "speed=plain")
LONG = (*LARGE, "trainer.max_length=8192", "plan.gpu=48GiB")
NF4 = ("model=chatglm3-6b", "quantization=nf4", "trainer.max_length=1024", "plan.gpu=16GiB")
BATCH, PASSES = "trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps"
ALONE = "parallel.keep_batch=false"


@pytest.mark.parametrize(
    ("words", "processes", "advised"),
    [
        ((*LONG, f"{BATCH}=8", ALONE), 4, {BATCH: "4", PASSES: "2"}),
        ((*LONG, f"{BATCH}=32"), 4, {BATCH: "4", PASSES: "8"}),
        ((*LONG, f"{BATCH}=12", f"{PASSES}=3", ALONE), 3, {BATCH: "4", PASSES: "9"}),
        ((*LONG, f"{BATCH}=8", f"{PASSES}=2"), 1, {BATCH: "4", PASSES: "4"}),
        ((*NF4, f"{BATCH}=5"), 2, {}),  # no parts of 5 rows keep two processes busier
        ((*NF4, f"{BATCH}=1", f"{PASSES}=6", ALONE), 2, {BATCH: "3", PASSES: "2"}),
    ],
)
def test_advice_keeps_the_rows_of_a_step(cli, capsys, words, processes, advised):
    shared = ("parallel=ddp", f"parallel.num_processes={processes}") if processes > 1 else ()

    gpu = next(word for word in words if word.startswith("plan.gpu="))

    def plan(folder, *words):
        run = cli("recipe=plan", *words, folder=folder)
        assert run.code == 0
        return json.loads((run.folder / "plan.json").read_text()), capsys.readouterr().out

    first, said = plan("first", *words, *shared)
    assert first["cards"][0]["setting"] == advised
    again, after = plan("again", *shlex.split(first["command"])[3:], gpu)
    rows = [int(re.search(r"step\s+(\d+) rows", each)[1]) for each in (said, after)]
    assert rows[0] == rows[1]
    if advised:
        assert f"still {rows[0]} rows a step" in said
        told = float(re.search(r"then ([\d.]+) GiB", said)[1])
        assert again["memory"]["total_bytes"] / GIB == pytest.approx(told, abs=0.06)
    assert again["cards"][0]["fits"]
