"""Values of library fields that failed only after loading, or did nothing, are refused before it by key."""

from __future__ import annotations

import re

import pytest

from helpers.command import QUIET, TINY, issues
from recipes import OBJECTIVES
from runner.cli import run_config
from runner.core.errors import ConfigError
from runner.models import module_patterns

HELD_OUT = "data.eval_path=null data.metric=null "

# What is found without importing a library: the words, and what the message must say.
EARLY = [
    ("trainer.adam_beta1=1.0", "at least 0 and below 1"),
    ("trainer.adam_beta2=1", "at least 0 and below 1"),
    ("trainer.adam_epsilon=0", "above 0"),
    ("trainer.max_grad_norm=-1", "at least 0"),
    ("trainer.neftune_noise_alpha=nan", "nan is not a number to compute with"),
    ("trainer.neftune_noise_alpha=-1", "-1 is below zero"),
    ("trainer.dataloader_num_workers=1000000000", "at most 256"),
    ("lora.r=1000000000", "at most 65536"),
    ("trainer.max_steps=99999999999999999999", "at most 2147483647"),
    ("trainer.report_to=wandbb", "did you mean 'wandb'?"),
    ("trainer.report_to=[none,nope]", "'nope' is not allowed"),
    ("trainer.report_to=comet_ml", "pip install comet-ml"),
    ("trainer.log_level=wraning", "did you mean 'warning'?"),
    ("trainer.torch_compile_backend=evil", "inductor"),
    ("trainer.torch_compile_mode=nope", "max-autotune"),
    ("trainer.use_liger_kernel=true", "needs the package liger-kernel"),
    ("trainer.lr_scheduler_kwargs=nope", "is not JSON"),
    ("trainer.lr_scheduler_kwargs='[1]'", "is not a mapping"),
    ("trainer.accelerator_config=y.json", "nothing is at 'y.json'"),
    ("trainer.fsdp=full_shard", "parallel=ddp"),
    ("trainer.deepspeed=x.json", "parallel=ddp"),
    ("trainer.parallelism_config=3", "parallel=ddp"),
    ("trainer.ddp_backend=nccl", "parallel=ddp"),
    ("lora=none parallel=zero2 parallel.reduce_bucket_size=0", "at least 1"),
    ("lora=none parallel=zero3 parallel.stage3_param_persistence_threshold=-1", "at least 0"),
    ("trainer.use_cpu=true", "CUDA_VISIBLE_DEVICES="),
    ("trainer.hub_strategy=end", "set push_to"),
    ("trainer.include_for_metrics=[inputs]", "set data.metric"),
    ("trainer.optim_target_modules=[q_proj]", "has no effect with trainer.optim="),
    ("trainer.gradient_checkpointing_kwargs={use_reentrant: false}", "trainer.gradient_checkpointing=true"),
    ("trainer.trackio_space_id=me/space", "trainer.report_to=trackio"),
    ("trainer.eval_delay=3", "has no effect with trainer.eval_strategy=no"),
    (HELD_OUT + "trainer.eval_on_start=true", "needs held-out rows"),
    ("trainer.save_strategy=best", "trainer.metric_for_best_model=loss"),
    ("lora.target_modules='(q_proj'", "is not a regular expression: missing )"),
    ("lora.target_modules='a)(b'", "is not a regular expression"),
    ("lora.exclude_modules='*q'", "nothing to repeat"),
    ("lora.modules_to_save=['(lm_head']", "is not a regular expression"),
    ("lora.layers_to_transform=[0] lora.layers_pattern='h('", "is not a regular expression"),
    ("lora.runtime_config=3", "expected dict, got int 3"),
    ("lora.runtime_config={nope: 1}", "LoraRuntimeConfig has no field 'nope'"),
    ("lora.velora_config={scale: x}", "scale: expected float"),
    ("trainer.optim=galore_adamw trainer.optim_target_modules=[q_proj]", "needs the package galore_torch"),
    ("trainer.optim=adalomo", "pip install lomo-optim"),
    ("trainer.optim=schedule_free_adamw", "pip install schedulefree"),
    ("trainer.optim=stable_adamw", "pip install torch-optimi"),
    ("trainer.lr_scheduler_type=reduce_lr_on_plateau", "needs trainer.eval_strategy"),
]

# What the library's own code says of the optimizer and the schedule, before anything is loaded.
LATE = [
    ("trainer.optim=adamw_anyprecision", "trainer.optim", "torchdistx"),
    ("trainer.optim_args=nope", "trainer.optim_args", "not enough values"),
    ("trainer.optim_args='foo=1'", "trainer.optim_args", "does not read foo=1"),
    ("trainer.lr_scheduler_kwargs={nope: 1}", "trainer.lr_scheduler_kwargs", "nope"),
    ("trainer.lr_scheduler_type=cosine_with_min_lr", "trainer.lr_scheduler_kwargs", "min_lr"),
    ("trainer.lr_scheduler_type=warmup_stable_decay", "trainer.lr_scheduler_kwargs", "num_decay_steps"),
    ("lora.target_modules='.*q_prj'", "lora.target_modules", "matches no module of the model"),
    ("lora.exclude_modules='.*q_prj'", "lora.exclude_modules", "matches no module of the model"),
    ("lora.target_modules='(([a-z._0-9]+)+)+!'", "lora.target_modules", "takes more than"),
]

FINE = [
    "trainer.report_to=none",
    "trainer.adam_beta1=0",
    "trainer.lr_scheduler_type=cosine_with_min_lr trainer.lr_scheduler_kwargs={min_lr: 0.00001}",
    "lora.target_modules='.*(q_proj|v_proj)$' lora.runtime_config={ephemeral_gpu_offload: false}",
]


def split(words: str) -> list[str]:
    """Words as a shell would split them, where a value may hold spaces."""
    return re.split(r" (?=[\w.]+=)", words)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("words", "said"), EARLY, ids=[words for words, _ in EARLY])
def test_a_value_that_cannot_be_used_is_refused_at_once(words, said):
    command = run_config.parse(["model=tiny", *split(words), "seedd=1"], OBJECTIVES)
    with pytest.raises(ConfigError) as caught:
        run_config.check(command)
    messages = [str(issue) for issue in caught.value.issues]
    assert len(messages) == 2, messages  # together with the other mistake
    assert any(said in message for message in messages), messages


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("words", "key", "said"), LATE, ids=[words for words, _, _ in LATE])
def test_a_value_that_the_library_refuses_late_is_refused_before_loading(cli, capsys, words, key, said):
    run = cli(*TINY, *QUIET, *split(words))
    err = capsys.readouterr().err
    assert run.code == 2, err
    assert f"{key}: " in err
    assert said in err
    assert "Traceback" not in err


@pytest.mark.sampled(4)
@pytest.mark.parametrize("words", FINE)
def test_a_value_that_works_is_not_refused(cli, words):
    assert cli(*TINY, *QUIET, "trainer.max_steps=1", *split(words)).code == 0


NAMES = [f"model.layers.{n}.self_attn.{name}_proj" for n in range(40) for name in "qkvo"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("key", ["target_modules", "rank_pattern", "modules_to_save", "lambda_pattern"])
@pytest.mark.parametrize("pattern", ["(([a-z._0-9]+)+)+!", ".*.*.*.*.*.*.*.*.*.*.*!"])
def test_a_pattern_without_end_is_bounded_wherever_it_stands(monkeypatch, pattern, key):
    monkeypatch.setattr(module_patterns, "SECONDS", 0.4)
    value = pattern if key == "target_modules" else [pattern] if key == "modules_to_save" else {pattern: 4}
    [issue] = module_patterns.check_patterns("lora", {"modules_to_save": ["q_proj"], key: value}, NAMES)
    assert issue.where == f"lora.{key}"
    assert "takes more than" in issue.message


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_of_a_file_that_is_none_is_refused_with_its_line(tmp_path, key):
    file = tmp_path / "lora" / "theirs.yaml"
    file.parent.mkdir()
    file.write_text(f'_target_: peft.LoraConfig\nr: 4\n{key}: {{"(q_proj": 8}}\n', encoding="utf-8")
    words = ["model=tiny", "--config-dir", str(tmp_path), "lora=theirs"]
    with pytest.raises(ConfigError, match=r"theirs.yaml:3: lora.*is not a regular expression"):
        run_config.check(run_config.parse(words, OBJECTIVES))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("push_to=a", "'a' is not a repository name"),
        ("push_to=a/b--c", "is not a repository name"),
        ("push_to=a/b.git", "is not a repository name"),
        ("model.revision=abc", "model.revision names a state of a model of the hub"),
    ],
)
def test_names_of_the_hub_are_checked_before_any_library_is_loaded(word, said):
    assert said in issues("model=tiny", word)[0]
