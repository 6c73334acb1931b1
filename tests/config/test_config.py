"""Every mistake of a command is found before anything is loaded."""

from pathlib import Path

import pytest

from helpers.command import TINY, check, issues, one
from runner.__main__ import main
from runner.cli import compose
from runner.core.errors import ExitCode
from runner.core.paths import CONFIG_DIR


@pytest.fixture
def own(tmp_path: Path):
    """Write a file of one's own config folder; returns the words that use an experiment of it."""

    def write(text: str, name: str = "experiment/mine") -> list[str]:
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(("# @package _global_\n" if name.startswith("experiment/") else "") + text)
        return ["--config-dir", str(tmp_path), name.replace("/", "=")]

    return write


# One mistake a row: what is typed, and what the message must say.
MISTAKES = [
    # unknown keys and options
    (["seedd=3"], ["seedd=3: unknown key", "'seed'"]),
    (["learning_rate=1"], ["unknown key", "'trainer.learning_rate'"]),
    (["learnig_rate=1"], ["'trainer.learning_rate'"]),
    (["lora.rr=3"], ["lora.rr=3: unknown key", "'lora.r'"]),
    (["+lora.rr=3"], ["+lora.rr=3: unknown key"]),
    (["++foo.bar=3"], ["unknown key 'foo.bar'"]),
    (["lora.learning_rate=1"], ["'trainer.learning_rate'"]),
    (["data.colums={}"], ["'data.columns'"]),
    (["data.path=[{path: 'embedded:orders_train', wieght: 2}]"], ["data.path.0.wieght", "'weight'"]),
    (["lora=r99"], ["unknown lora 'r99'", "r16"]),
    (["lora="], ["unknown lora ''"]),
    (["lora=null"], ["null is not an option", "'none'"]),
    (["lora=8"], ["unknown lora '8'", "'r8'"]),
    (["model=[tiny,qwen3-4b]"], ["takes one option", "-m model=tiny,qwen3-4b"]),
    (["+lora=r8"], ["Multiple values", "lora=r8"]),
    (["++lora=r8"], ["write lora=r8"]),
    (["~lora.rr"], ["does not exist"]),
    (["~recipe"], ["unknown recipe None", "sft"]),
    (["~trainer"], ["cannot be left out", "choose one: trainer=..."]),
    (["~model"], ["cannot be left out"]),
    (["recipe=stf"], ["unknown recipe 'stf'", "'sft'"]),
    (["hydra.verbos=1"], ["'verbos'"]),
    (["hydra.run.dir=x"], ["set output_dir"]),
    (["hydra/launcher=foo"], ["hydra/launcher=foo", "basic"]),
    # what is typed
    (["lora.r"], ["lora.r: expected key=value"]),
    (["data.path=a=b.jsonl"], ["cannot be read", "\"data.path='a=b.jsonl'\""]),
    (["template.system=你好"], ["\"template.system='你好'\""]),
    (["lora={r:"], ["the shell has split it"]),
    (["lora.r=8,16"], ["add -m"]),
    (["-m", "lora.r=interval(1,2)"], ["write the values: lora.r=1,2,3"]),
    (["--lora.r=8"], ["--lora.r=8: unknown flag", "write lora.r=8"]),
    (["--multi-run"], ["'--multirun'"]),
    (["--cfg", "job", "-m"], ["-m", "--cfg"]),
    (["--resolve"], ["--cfg job"]),
    (["--experimental-rerun", "x"], ["not supported"]),
    (["--config-name", "confg"], ["no confg.yaml", "'config'"]),
    (["--config-path", "/no/such/folder"], ["no folder /no/such/folder"]),
    (["--config-dir", "/no/such/folder"], ["no folder /no/such/folder"]),
    # types
    (["lora.r=true"], ["expected int, got bool True"]),
    (["lora.r=8.0"], ["expected int, got float 8.0"]),
    (["lora.r=null"], ["expected int, got null"]),
    (["lora.r=[8]"], ["expected int, got list [8]"]),
    (["lora.r={a: 1}"], ["expected int, got dict"]),
    (["trainer.learning_rate='1e-4'"], ["expected float, got str '1e-4'"]),
    (["model.trust_remote_code=1"], ["expected bool, got int 1"]),
    (["lora.target_modules=[q_proj,3]"], ["a list of str cannot hold 3"]),
    (["quantization=nf4", "quantization.bnb_4bit_quant_type=nf5"], ["'nf5'", "'nf4'"]),
    (["trainer.optim=adamw_torc"], ["'adamw_torch'"]),
    (["data.train_on=user"], ["assistant"]),
    # values
    (["lora.r=0"], ["allowed: at least 1"]),
    (["trainer.learning_rate=-1"], ["allowed: at least 0"]),
    (["trainer.learning_rate=inf"], ["out of range"]),
    (["trainer.learning_rate=nan"], ["out of range"]),
    (["trainer.max_steps=0"], ["at least 1", "or -1 for none"]),
    (["trainer.num_train_epochs=0"], ["above 0"]),
    (["trainer.output_dir=x"], ["set output_dir"]),
    (["data.path="], ["data.path must be given"]),
    (["data.path=???"], ["data.path must be given", "add data.path=..."]),
    (["data.path=[3]"], ["data.path.0: 3 is not a data source"]),
    (["data.path=[{path: 'embedded:orders_eval', weight: -1}]"], ["data.path.0.weight=-1"]),
    (["data.eval_path=[{weight: 1}]"], ["is not a data source"]),
    (["data.path=rows.jsonl"], ["nothing is at 'rows.jsonl'"]),
    (["data.path=embedded:order_train"], ["'orders_train'"]),
    ([f"data.path=/{'x' * 300}.jsonl"], ["nothing is at"]),
    (["adapter=nowhere"], ["adapter: nothing is at 'nowhere'"]),
    (["adapter="], ["adapter: nothing is at ''"]),
    (["template.system=${nope}"], ["'nope' not found"]),
    (["template.kwargs=${template}"], ["template.kwargs"]),
    # between keys
    (["trainer.max_steps=3", "trainer.num_train_epochs=2"], ["contradict each other"]),
    (["trainer.fp16=true", "trainer.bf16=true"], ["contradict each other"]),
    (["trainer.precision=fp16", "trainer.bf16=true"], ["contradicts trainer.precision=fp16"]),
    (["lora=none", "quantization=nf4"], ["conf/quantization/nf4.yaml:3", "cannot be fully fine-tuned"]),
    (["lora=pissa", "quantization=nf4"], ["conf/lora/pissa.yaml:7", "quantization=none"]),
    (["trainer.load_best_model_at_end=true"], ["needs trainer.eval_strategy"]),
    (
        ["trainer.load_best_model_at_end=true", "trainer.eval_strategy=steps", "trainer.save_strategy=epoch"],
        ["set trainer.save_strategy=steps"],
    ),
    (["data.eval_path=null", "data.metric=null", "trainer.eval_strategy=epoch"], ["needs held-out rows"]),
    (["data.eval_split=0.1"], ["contradict each other"]),
    (["trainer.packing=true", "trainer.max_length=null"], ["set trainer.max_length"]),
    # classes
    (["lora._target_=os.system"], ["'os.system' is not a peft class", "peft.AdaLoraConfig"]),
    (["lora._target_=peft.LoraConfg"], ["'peft.LoraConfig'"]),
    (["lora._target_=peft.PeftModel"], ["not a peft class allowed here"]),
    (["quantization._target_=transformers.AutoModel"], ["not a transformers or runner class allowed here"]),
    (["model._target_=os.system"], ["model._target_: no class may be named here"]),
    (["lora.runtime_config._target_=os.system"], ["no class may be named here"]),
    (["template.kwargs={a: [{_target_: os.system}]}"], ["template.kwargs.a.0._target_"]),
]


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_is_named_once_with_what_is_allowed(words, said):
    (message,) = issues(*words)
    assert [text for text in said if text not in message] == []


def test_all_mistakes_are_reported_together(capsys):
    words = ["lora.rr=3", "foo=1", "lora=r99", "trainer.learning_rate=x", "hydra.verbos=1", "a=b=c", "--lr"]
    assert main(words) == ExitCode.CONFIG_ERROR
    said = capsys.readouterr().err
    assert "7 config errors" in said
    assert [word for word in words if f"{word}: " not in said] == []
    assert "Traceback" not in said


def test_wrong_options_among_many_words_are_found_by_halving(monkeypatch):
    tried, composed = [], compose._composed
    monkeypatch.setattr(compose, "_composed", lambda *given: (tried.append(given), composed(*given))[1])
    found = issues(*TINY, "lora=r99", "seed=3", "data=none")
    assert sorted(text.partition(":")[0] for text in found) == ["data=none", "lora=r99"]
    assert len(tried) <= 2 + 4 + 4  # all, none, and of ten words each that is wrong


def test_a_mistake_in_a_file_is_named_with_its_line(own, tmp_path):
    words = own("sed: 1\nlora:\n  rr: 4\n  lora_dropout: '0.1'\ntrainer:\n  eval_strategy: no\n")
    where = f"{tmp_path}/experiment/mine.yaml"
    said = issues(*words)
    assert sorted(text.partition(": ")[0] for text in said) == [f"{where}:{line}" for line in (2, 4, 5, 7)]
    assert any('write "no", with the quotes' in text for text in said)
    # the option that was chosen is no key: the file is to blame
    assert issues(*own("_target_: peft.LoraConfig\nr: 0\n", "lora/mine"))[0].startswith(
        f"{tmp_path}/lora/mine.yaml:2: "
    )


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("defaults:\n  - override /lora: r99\n", 3, "r16"),
        ("defaults:\n  - override lora: r8\n", 3, "'/lora'"),
        ("defaults:\n  - override /lore: r8\n", 3, "'/lora'"),
        ("defaults:\n  - /lora: r8\n", 3, "override /lora: r8"),
        ("lora:\n  r: 3\n bad: [\n", 4, "not readable as YAML"),
        ("lora:\n  r: 3\n  r: 4\n", 4, "duplicate key"),
        ("lora: 5\n", 2, "lora is a section of keys"),
        ("1: 2\n", 2, "unknown key '1'"),
        ("- a\n", 1, "not a mapping of keys"),
        ("trainer: {max_steps: 3, num_train_epochs: 1}\n", 2, "contradict"),
        ("lora:\n  runtime_config:\n    x:\n    - _target_: os.system\n", 5, "no class may be named here"),
        ("template:\n  system: ${nope}\n", 3, "'nope' not found"),
    ],
)
def test_an_experiment_that_cannot_be_composed_says_where(own, tmp_path, text, line, said):
    message, *others = issues(*own(text), "seedd=1")
    file = f"{tmp_path}/experiment/mine.yaml" + (f":{line}" if line else "")
    rest = [other for other in [message, *others] if "seedd" not in other]
    assert len(rest) == 1
    assert rest[0].startswith(f"{file}: ")
    assert said in rest[0]
    assert len(others) == 1, "the other mistake is reported too"


def test_an_experiment_needs_its_package_header(own, tmp_path):
    words = own("seed: 1\n")
    for text in ("seed: 1\n", "defaults:\n  - override /lora: r8\n"):
        (tmp_path / "experiment" / "mine.yaml").write_text(text)
        assert "experiment/mine.yaml" in issues(*words)[0]
        assert "# @package _global_" in issues(*words)[0]


def test_a_file_that_is_no_text_is_refused(own, tmp_path):
    words = own("")
    (tmp_path / "experiment" / "mine.yaml").write_bytes(b"# @package _global_\nseed: \xff\n")
    assert "mine.yaml:2: not readable as YAML: byte 7 of the line is not UTF-8" in issues(*words)[0]


def test_the_stronger_of_two_exclusive_keys_wins(own):
    assert one("trainer.max_steps=3").trainer.get("num_train_epochs") is None
    words = own("trainer: {max_steps: 3}\n")
    assert one(*words).trainer["max_steps"] == 3
    assert "num_train_epochs" not in one(*words).trainer
    assert "max_steps" not in one(*words, "trainer.num_train_epochs=2").trainer
    assert one("trainer.max_steps=-1").trainer["num_train_epochs"] == 1


def test_fields_of_every_section_need_no_plus():
    run = one(
        "quantization=nf4",
        "quantization.llm_int8_threshold=5.0",
        "quantization.bnb_4bit_compute_dtype=float16",
        "lora.use_rslora=true",
        "lora.rank_pattern.q_proj=4",
        "lora.modules_to_save=[lm_head]",
        "trainer.adam_beta2=0.95",
        "trainer.neftune_noise_alpha=5",
        "trainer.lr_scheduler_kwargs={num_cycles: 2}",
        "trainer.packing=true",
        "trainer.packing_strategy=wrapped",
        "data.columns.question=instruction",
        "data.min_chars=2",
        "model.revision=main",
        "template.kwargs.enable_thinking=false",
        "generation.rows=3",
    )
    assert run.quantization["llm_int8_threshold"] == 5.0
    assert run.lora["rank_pattern"] == {"q_proj": 4}
    assert run.trainer["lr_scheduler_kwargs"] == {"num_cycles": 2}
    assert (run.data.columns, run.template.kwargs) == (
        {"question": "instruction"},
        {"enable_thinking": False},
    )
    assert one("lora={r: 4}").lora["r"] == 4


def test_flags_and_overrides_stand_in_any_order():
    assert len(check("lora=r8", "-m", "lora.r=1,2")) == 2


def test_every_value_of_a_sweep_is_checked():
    runs = check("-m", "lora.r=8,16", "seed=range(3)", "model=glob(qwen3-*b,exclude=*-a*)")
    assert {run.lora["r"] for run in runs} == {8, 16}
    assert {run.seed for run in runs} == {0, 1, 2}
    named = {file.stem for file in (CONFIG_DIR / "model").glob("qwen3-*b.yaml")}
    assert {run.model.architecture for run in runs} == {name for name in named if "-a" not in name}
    assert len(named) > 3
    said = issues("-m", "lora.r=8,0,-1", "trainer.learning_rate=1e-4,abc", "lora=r8,r77")
    assert sorted(text.partition(": ")[0] for text in said) == [
        "lora.r=-1",
        "lora.r=0",
        "lora=r8,r77",
        "trainer.learning_rate=abc",
    ]


def test_cells_of_a_sweep_must_differ():
    assert "two cells of the sweep are the same run" in issues("-m", "lora.r=8,8")[0]


@pytest.mark.slow
def test_a_sweep_in_a_file_is_checked_too(own):
    words = own("hydra:\n  sweeper:\n    params:\n      lora.r: 8,0\n      seed: 1,2\n")
    assert issues("-m", *words)[0].startswith("lora.r=0: ")
    assert {run.lora["r"] for run in check("-m", *words, "lora.r=4")} == {4}
    assert "add -m" in issues(*words)[0]


def test_a_primary_config_of_ones_own_builds_on_the_packaged_one(own, tmp_path):
    own("defaults: [config, _self_]\nseed: 5\n", "own")
    own("trainer: {max_steps: 2}\n")
    words = ["--config-path", str(tmp_path), "--config-name", "own"]
    assert one(*words).seed == 5
    assert one(*words, "experiment=mine", "lora=r8", "seed=6").trainer["max_steps"] == 2
    own("defaults: [runner, trainer: sft, model: tiny, lora: r8, data: orders, recipe: sft]\n", "few")
    few = [*words[:-1], "few"]
    assert (one(*few).output_dir, one(*few, "output_dir=o", "seed=2").output_dir) == (None, "o")
    own("seed: 5\n", "bare")
    assert "- runner" in issues(*words[:-1], "bare")[0]


@pytest.mark.parametrize("flags", [[], ["--config-name", "config"], ["-m"]])
def test_a_folder_without_the_primary_config_does_not_run_the_packaged_one(tmp_path, flags):
    cell = tmp_path / "sweep" / "lora.r=4"
    cell.mkdir(parents=True)
    found = issues("--config-path", str(cell.parent), "model=tiny", *flags)
    assert "no config.yaml in" in found[0]
    assert "--config-dir" in found[0]
    (cell / "config.yaml").write_text("seed: 4\n")
    assert str(cell) in issues("--config-path", str(cell.parent), "model=tiny", *flags)[0]


def test_folders_with_spaces_and_commas(tmp_path):
    folder = tmp_path / "a b,c=d" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nseed: 4\n")
    assert one("--config-dir", str(folder.parent), "experiment=mine").seed == 4


def test_a_value_may_read_what_hydra_knows():
    run = one("model=tiny", "output_dir=${hydra:runtime.cwd}/${hydra:runtime.choices.model}")
    assert run.output_dir == f"{Path.cwd()}/tiny"
