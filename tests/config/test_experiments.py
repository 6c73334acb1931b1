"""The experiments carry the values they were published with, and a preset changes none of them in silence."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from recipes import OBJECTIVES
from runner.cli import run_config
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError
from runner.plan.find import find_architecture
from runner.plan.trained import targets

ATTENTION = "q k v o"
ALL = "q k v o gate up down"
LINEAR = {"lr_scheduler_type": "linear"}
PAGED = "paged_adamw_32bit"
EVERY = {"logging_steps": 10}


def trainer(batch: int, passes: int, rate: float, optim: str, length: int, **more) -> dict:
    return {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": passes,
        "learning_rate": rate,
        "optim": optim,
        "max_length": length,
        **more,
    }


def steps(kind: str, count: int) -> dict:
    return {f"{kind}_strategy": "steps", f"{kind}_steps": count}


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
OF_QWEN_7B = trainer(
    *(2, 4, 3e-4, "paged_adamw_8bit", 512),
    **LINEAR,
    **EVERY,
    **steps("eval", 100),
    **steps("save", 100),
    warmup_steps=100,
    num_train_epochs=3,
    max_grad_norm=1.0,
    weight_decay=0.0,
    gradient_checkpointing=True,
    per_device_eval_batch_size=1,
    save_total_limit=3,
    load_best_model_at_end=True,
    metric_for_best_model="eval_loss",
)
FP16 = NF4 | {"bnb_4bit_compute_dtype": "float16"}

# Of each experiment: model, quantization, (r, alpha, dropout), targets, trainer, and other sections' keys.
TABLE = {
    "qwen3-4b-qlora": (
        "Qwen/Qwen3-4B",
        NF4,
        (64, 16, 0.05),
        ATTENTION,
        trainer(
            *(1, 16, 1e-4, PAGED, 2048),
            **LINEAR,
            **EVERY,
            **steps("eval", 50),
            **steps("save", 50),
            warmup_steps=0,
            max_steps=100,
            max_grad_norm=1.0,
            weight_decay=0.0,
            gradient_checkpointing=True,
        ),
        {"seed": 42, "template": "### 指令 ### 输入 ### 回答"},
    ),
    "qwen3-4b-alpaca": (
        "Qwen/Qwen3-4B",
        NF4,
        (16, 16, 0.0),
        ALL,
        trainer(
            *(2, 4, 2e-4, "adamw_8bit", 2048),
            **LINEAR,
            warmup_steps=5,
            max_steps=60,
            max_grad_norm=1.0,
            weight_decay=0.01,
            gradient_checkpointing=True,
            logging_steps=1,
            eval_strategy="no",
            save_strategy="no",
        ),
        {
            "seed": 3407,
            "samples": 3,
            "template": "Below is an instruction ### Instruction ### Input ### Response",
        },
    ),
    "llama3.1-8b-qlora": (
        "meta-llama/Llama-3.1-8B-Instruct",
        NF4 | {"bnb_4bit_compute_dtype": "bfloat16"},
        (16, 32, 0.05),
        ALL,
        trainer(
            *(4, 4, 2e-4, PAGED, 2048),
            **EVERY,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            num_train_epochs=3,
            max_grad_norm=0.3,
            weight_decay=0.001,
            gradient_checkpointing=True,
            packing=True,
            eval_strategy="no",
            save_strategy="epoch",
            save_total_limit=3,
        ),
        {"seed": 42, "held_out": (0.1, 42), "template": "### Instruction ### Input ### Response"},
    ),
    "qwen2.5-7b-huanhuan": (
        "Qwen/Qwen2.5-7B-Instruct",
        {},
        (8, 32, 0.1),
        ALL,
        trainer(
            *(4, 4, 1e-4, "adamw_torch_fused", 384),
            **LINEAR,
            **EVERY,
            **steps("save", 100),
            warmup_steps=0,
            num_train_epochs=3,
            max_grad_norm=1.0,
            weight_decay=0.0,
            gradient_checkpointing=False,
            eval_strategy="no",
        ),
        {"seed": 42, "template": None, "held_out": (0.0, 0), "system": "甄嬛"},
    ),
    "qwen-7b-chat-qlora": (
        *("Qwen/Qwen-7B-Chat", FP16, (16, 32, 0.05), ALL, OF_QWEN_7B),
        {"seed": 42, "template": None},
    ),
    "qwen-14b-chat-qlora": (
        *("Qwen/Qwen-14B-Chat", FP16, (16, 32, 0.05), ALL),
        OF_QWEN_7B | {"per_device_train_batch_size": 1},
        {"seed": 42, "template": None},
    ),
    "llama2-7b-chat-qlora": (
        *("meta-llama/Llama-2-7b-chat-hf", FP16, (16, 32, 0.05), ALL, OF_QWEN_7B),
        {"seed": 42, "template": "[INST]"},
    ),
    "llama2-13b-chat-qlora": (
        *("meta-llama/Llama-2-13b-chat-hf", FP16, (16, 32, 0.05), ALL),
        OF_QWEN_7B | {"per_device_train_batch_size": 1},
        {"seed": 42, "template": "[INST]"},
    ),
    "chatglm3-6b-qlora": (
        *("zai-org/chatglm3-6b", FP16, (8, 32, 0.05), "q k v o gate_up down", OF_QWEN_7B),
        {"seed": 42, "template": None},
    ),
}
DOCUMENTED = list(TABLE)[:5]
ROWS = ("data.path=embedded:orders_train", "data.eval_path=embedded:orders_eval")


@cache
def compose(*words: str) -> RunConfig:
    (run,) = run_config.check(run_config.parse(list(words), OBJECTIVES)).configs
    return run


def rows_of(name: str) -> tuple[str, ...]:
    return ROWS if "chat-qlora" in name or "chatglm" in name else ROWS[:1]


@pytest.mark.parametrize("name", TABLE)
def test_an_experiment_has_its_published_values(name):
    model, quantization, (r, alpha, dropout), adapted, arguments, others = TABLE[name]
    run = compose(f"experiment={name}", *rows_of(name))
    assert run.model.path == model
    assert {key: value for key, value in run.quantization.items() if key != "_target_"} == quantization
    assert (run.lora["r"], run.lora["lora_alpha"], run.lora.get("lora_dropout")) == (r, alpha, dropout)
    found = {each.short for each in targets(find_architecture(run.model), run.lora)}
    assert found == {f"{short}_proj" for short in adapted.split()}
    assert {key: run.trainer.get(key) for key in arguments} == arguments
    assert run.seed == others["seed"]
    assert run.generation.samples == others.get("samples", run.generation.samples)
    assert (run.data.eval_split, run.data.split_seed) == others.get(
        "held_out", (run.data.eval_split, run.data.split_seed)
    )
    assert others.get("system", "") in (run.template.system or "")
    template, wanted = run.template.chat_template, others["template"]
    assert (template is None) == (wanted is None)
    assert all(part in str(template) for part in re.split(" (?=#)", wanted or ""))


def test_the_alpaca_prompt_ends_with_the_end_token():
    for name in ("qwen3-4b-qlora", "qwen3-4b-alpaca", "llama3.1-8b-qlora"):
        assert "eos_token" in str(compose(f"experiment={name}", *ROWS[:1]).template.chat_template)


def test_the_exports_of_the_alpaca_experiment():
    run = compose("experiment=qwen3-4b-alpaca-chain", *ROWS[:1])
    assert run.stages is not None
    assert run.stages["sft"] == ["experiment=qwen3-4b-alpaca"]
    words = " ".join(word for stage in run.stages.values() for word in stage)
    kinds = [kind for found in re.findall(r"gguf.kind=\[(.*?)\]", words) for kind in found.split(",")]
    assert sorted(kinds) == ["f16", "q4_k_m", "q5_k_m", "q8_0"]
    assert "export=int4" in words


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", DOCUMENTED)
@pytest.mark.parametrize("over", ["model=smollm2-135m", "model=tiny data=orders"])
def test_what_is_chosen_over_an_experiment_leaves_its_other_sections_alone(name, over):
    own = compose(f"experiment={name}", *rows_of(name))
    rows = rows_of(name)
    if "data=" in over:  # whose own held-out rows would contradict a split
        rows = ("data.eval_path=null",) if own.data.eval_split else ()
    run = compose(f"experiment={name}", *over.split(), *rows)
    assert run.trainer == own.trainer
    assert (run.lora, run.quantization, run.template, run.generation) == (
        *(own.lora, own.quantization, own.template, own.generation),
    )


@pytest.mark.parametrize("name", DOCUMENTED)
def test_an_experiment_without_quantization_leaves_its_keys_out(name):
    own = compose(f"experiment={name}", *rows_of(name))
    run = compose(f"experiment={name}", "quantization=none", *rows_of(name))
    assert run.quantization == {}
    assert (run.lora, run.trainer) == (own.lora, own.trainer)
    full = compose(f"experiment={name}", "quantization=none", "lora=none", *rows_of(name))
    assert full.lora == {}


def test_a_key_that_is_typed_beside_no_quantization_is_refused():
    word = "quantization.bnb_4bit_compute_dtype=float16"
    with pytest.raises(ConfigError, match=f"{word}: quantization has the key bnb_4bit_compute_dtype"):
        compose("experiment=qwen-7b-chat-qlora", "quantization=none", word, *ROWS)


def test_a_key_left_without_a_class_by_files_alone_is_refused(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [qwen-7b-chat-qlora, {override /quantization: none}]\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    words = ("--config-dir", str(tmp_path), "experiment=mine", *ROWS)
    with pytest.raises(ConfigError, match="leave it out: '~quantization"):
        compose(*words)
    assert compose(*words, "~quantization.bnb_4bit_compute_dtype").quantization == {}


MINE = {
    "plain": {"defaults": [{"override /model": "qwen3-0.6b"}]},
    "further": {"defaults": ["plain", "_self_"]},
    "absolute": {"defaults": ["/experiment/further"]},
    "inline": {"model": {"path": "Qwen/Qwen3-0.6B", "architecture": "qwen3-0.6b"}},
    "same": {"defaults": [{"override /model": "smollm2-135m"}]},
    "none": {"lora": {"r": 4}},
    "stated": {"trainer": {"learning_rate": 7e-4}},
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("", 1e-3),  # the model that its rate was measured with
        ("experiment=none", 1e-3),
        ("experiment=same", 1e-3),
        ("experiment=plain", 2e-4),
        ("experiment=plain model=smollm2-135m", 2e-4),
        ("experiment=further model=smollm2-135m", 2e-4),
        ("experiment=absolute model=smollm2-135m", 2e-4),
        ("experiment=inline", 2e-4),
        ("experiment=stated", 7e-4),
        ("experiment=stated model=smollm2-135m", 7e-4),
        ("experiment=stated trainer.learning_rate=5e-4", 5e-4),
        ("model.path=Qwen/Qwen3-4B", 2e-4),  # another model than the preset's
        ("model.architecture=qwen3-0.6b model.weights=random", 2e-4),
        ("model=tiny", 2e-4),
        ("model=smollm2-135m", 1e-3),
    ],
)
def test_a_rate_that_belongs_to_a_model_goes_with_that_model_only(words, rate, tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    for name, values in MINE.items():
        text = "# @package _global_\n" + yaml.safe_dump(values)
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    run = compose("--config-dir", str(tmp_path), *words.split())
    assert run.trainer["learning_rate"] == rate
