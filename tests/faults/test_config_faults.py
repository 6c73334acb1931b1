"""A config that does not mean what it says is refused by name, before anything is loaded or left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.command import TINY
from helpers.sweep_folder import cell, make_sweep
from runner.reports.results import read_sweep


def fault(name: str, words: str, *said: str) -> object:
    """A command as typed, and what its message must name."""
    return pytest.param(words.split(), said, id=name)


FAULTS = [
    fault("1 unknown key", "sead=3", "sead=3: unknown key", "'seed'"),
    fault("1 key of a section", "learning_rate=1e-4", "learning_rate=1e-4", "'trainer.learning_rate'"),
    fault("1 unknown section", "lorra.r=8", "lorra.r=8: unknown key 'lorra.r'"),
    fault("2 typo at depth", "lora.lora_alfa=8", "lora.lora_alfa=8: unknown key", "'lora.lora_alpha'"),
    fault("2 own section", "generation.sample=1", "generation.sample=1", "'generation.samples'"),
    fault("2 inside a library field", "trainer.accelerator_config.x=1", "trainer: SFTConfig", "'x'"),
    fault("2 source of a mix", "data.path=[{path:embedded:orders_eval,wait:2}]", "data.path.0.wait"),
    fault("2 template variable", "template.kwargs.mesages=1", "template.kwargs.mesages", "'messages'"),
    fault(
        "2 module to train", "lora.modules_to_save=[lm_hed]", "lora.modules_to_save", "'lm_hed'", "lm_head"
    ),
    fault("2 module to leave out", "lora.exclude_modules=[q_prj]", "lora.exclude_modules", "q_proj"),
    fault("2 module of a rank", "lora.rank_pattern.q_prj=4", "lora.rank_pattern", "'q_prj'", "q_proj"),
    fault("2 module of an alpha", "lora.alpha_pattern.q_prj=4", "lora.alpha_pattern", "'q_prj'"),
    fault(
        "2 layer that is not there",
        "lora.target_modules=[q_proj] lora.layers_to_transform=[0,9]",
        "lora.layers_to_transform",
        "no layer 9",
        "0 to 1",
    ),
    fault("3 unknown option", "lora=r17", "lora=r17: unknown lora 'r17'", "r16"),
    fault("3 unknown recipe", "recipe=sfft", "recipe=sfft", "'sft'"),
    fault("3 unknown experiment", "experiment=orders-chian", "experiment=orders-chian", "'orders-chain'"),
    fault("4 steps and epochs", "trainer.max_steps=3 trainer.num_train_epochs=2", "contradict each other"),
    fault("4 two number formats", "trainer.fp16=true trainer.bf16=true", "trainer.fp16", "trainer.bf16"),
    fault("4 full tuning of 4 bits", "lora=none quantization=nf4", "nf4.yaml:3", "fully fine-tuned"),
    fault("4 two kinds of held-out rows", "data.eval_split=0.1", "data.eval_split=0.1", "data.eval_path"),
    fault("4 no held-out rows", "data.eval_path=null", "data.metric=exact_match needs held-out rows"),
    fault("4 packing without a length", "trainer.packing=true trainer.max_length=null", "trainer.max_length"),
    fault("4 adapter keys without one", "lora=none lora.r=8", "lora.r=8", "names no class"),
    fault("4 key of another recipe", "merge.density=0.5", "merge.density=0.5", "recipe=merge"),
    fault("4 evaluation that is off", "trainer.eval_steps=5", "trainer.eval_steps=5", "eval_strategy=no"),
    fault("4 saving by epochs", "trainer.save_steps=5", "trainer.save_steps=5", "save_strategy=epoch"),
    fault("4 no such moment", "trainer.optim=sgd trainer.adam_beta1=0.8", "trainer.adam_beta1", "optim=sgd"),
    fault("4 part of a local file", "data.split=test", "data.split=test", "files here"),
    fault("4 part by subset", "data.subset=fr", "data.subset=fr", "files here"),
    fault("5 the same value twice", "-m lora.r=8,8", "lora.r=8", "two cells of the sweep are the same run"),
    fault("5 the same number", "-m lora.lora_dropout=0,0.0", "lora.lora_dropout=0.0", "the same run"),
    fault("5 a number written twice", "-m trainer.learning_rate=1e-2,0.01", "learning_rate=1e-2 and 0.01"),
    fault("5 two axes, equal pairs", "-m lora.r=8,4 seed=1,1", "lora.r=8 seed=1", "the same run"),
    fault("5 axis of no effect", "-m trainer.eval_steps=1,2", "trainer.eval_steps=1", "eval_strategy=no"),
    fault("6 + at depth", "+lora.rr=8", "+lora.rr=8: unknown key 'lora.rr'", "'lora.r'"),
    fault("6 + at the top", "+notes.mine=1", "+notes.mine=1: unknown key"),
    fault("6 ++", "++trainer.lerning_rate=1", "++trainer.lerning_rate=1", "'trainer.learning_rate'"),
    fault("6 + of a group", "+data/extra=file", "+data/extra=file"),
    fault("6 + in a sweep", "-m +lora.rr=1,2", "+lora.rr=1: unknown key", "+lora.rr=2: unknown key"),
    fault("6 + to Hydra's own", "+hydra.foo=1", "+hydra.foo=1: unknown key 'hydra.foo'"),
    fault("6 + inside Hydra's own", "++hydra.run.dri=x", "++hydra.run.dri=x", "'dir'"),
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("words", "said"), FAULTS)
def test_a_config_fault_is_refused_by_name(cli, capsys, words, said):
    tiny = [word for word in TINY if not word.startswith("trainer.max_steps")]
    run = cli(*tiny, *words)
    err = capsys.readouterr().err
    assert run.code == 2, err
    assert [text for text in said if text not in err] == []
    assert "Traceback" not in err
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeed: 1\n", "2: unknown key 'seeed'"),
        ("lora:\n  lora_alfa: 8\n", "3: unknown key 'lora.lora_alfa'"),
        ("defaults:\n  - override /lora: r17\n", "3: "),
        ("trainer: {eval_steps: 5, eval_strategy: 'no'}\n", "2: trainer.eval_steps has no effect"),
    ],
    ids=["1", "2", "3", "4"],
)
def test_a_fault_of_a_file_is_named_with_its_line(cli, capsys, tmp_path, text, said):
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{text}")
    run = cli("model=tiny", "--config-dir", "conf", "experiment=mine")
    assert run.code == 2
    assert f"mine.yaml:{said}" in capsys.readouterr().err
    assert not run.folder.exists()


IN_HYDRA = [
    ("mode: ${seed}TIRUN", "mine.yaml:3: While dereferencing interpolation"),
    ("mode: ${nothing}", "mine.yaml:3: Interpolation key 'nothing' not found"),
    ("run: {dir: '${nothing}'}", "mine.yaml:3: Interpolation key 'nothing' not found"),
    ("sweep: {dir: '${nothing}'}", "mine.yaml:3: Interpolation key 'nothing' not found"),
    ("launcher: {_target_: '${nothing}'}", "mine.yaml:3: Interpolation key 'nothing' not found"),
    ("run: {dir: there}", "mine.yaml:3: hydra.run.dir is decided elsewhere"),
    ("verbose: true", "hydra.verbose: has no effect on a run"),
    ("launcher: null", "hydra.launcher._target_: None is not allowed"),
    ("sweeper: null", "hydra.sweeper._target_: None is not allowed"),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("text", "said", "words"),
    [*((*each, ()) for each in IN_HYDRA), *((*each, ("-m", "seed=1,2")) for each in IN_HYDRA[-2:])],
)
def test_a_fault_in_a_section_of_hydra_is_refused_by_name(cli, capsys, tmp_path, text, said, words):
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\nhydra:\n  {text}\n")
    assert cli("model=tiny", "--config-dir", "conf", "experiment=mine", *words).code == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_a_stronger_source_may_turn_off_what_a_weaker_one_set(cli, tmp_path):
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\ntrainer: {eval_steps: 1, eval_strategy: steps}\n")
    words = ("recipe=inspect", "--config-dir", "conf", "experiment=mine", 'trainer.eval_strategy="no"')
    first = cli(*TINY, *words)
    assert first.code == 0
    # and what is left runs again from the run folder
    assert cli("--config-path", str(first.folder), folder="again").code == 0


def test_an_axis_that_made_no_difference_is_said(tmp_path: Path):
    """Row 5, where only the results tell: two lengths, and no row that is longer than either."""
    cells = [
        cell("trainer.max_length=512,lora.r=4", 1.0, digests={"adapter": "sha256:aa"}),
        cell("trainer.max_length=1024,lora.r=4", 1.0, digests={"adapter": "sha256:aa"}),
        cell("trainer.max_length=512,lora.r=8", 0.9, digests={"adapter": "sha256:bb"}),
    ]
    [note] = read_sweep(make_sweep(tmp_path / "sweep", cells)).notes
    assert note == (
        "trainer.max_length=512,lora.r=4 and trainer.max_length=1024,lora.r=4 ended with the same weights: "
        "trainer.max_length made no difference"
    )
