"""Rows 35 and 36: files from someone else. Pickles run nothing, templates are held in a sandbox."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from helpers.command import TINY, Run
from helpers.tiny_model import copy, using, write_model
from runner.__main__ import main
from runner.core.atomic import xxh3_of_file
from runner.core.errors import ExitCode
from runner.core.process import limits
from runner.runs import checkpoint

MARKER = "marker"
SHORT = (*TINY[1:], "trainer.max_steps=1", "data.max_rows=8", "data.eval_max_rows=2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "theirs")


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on that model, with a checkpoint after the first of its two steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    steps = ("trainer.max_steps=2", "trainer.save_strategy=steps", "trainer.save_steps=1")
    assert main([*SHORT, *steps, *using(model), f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture
def said(cli: Callable[..., Run], capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[Run, str]]:
    """Run a command, and return how it ended with all that it printed."""

    def run(*words: str, folder: str = "run") -> tuple[Run, str]:
        capfd.readouterr()
        ended = cli(*words, folder=folder)
        return ended, "".join(capfd.readouterr())

    return run


@pytest.fixture(autouse=True)
def _no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MARKER", str(tmp_path / MARKER))
    yield
    assert not (tmp_path / MARKER).exists()


class Exploit:
    """Unpickled, it makes the marker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ('touch "$MARKER"',)


def plain(file: Path) -> None:
    """A pickle as Python writes it."""
    file.write_bytes(pickle.dumps({"lm_head.weight": Exploit()}))


def zipped(file: Path) -> None:
    """A pickle in torch's own format."""
    torch.save({"lm_head.weight": Exploit()}, file)


def test_the_exploits_are_real(tmp_path: Path) -> None:
    for write in (plain, zipped):
        write(tmp_path / "weights.bin")
        if write is plain:
            pickle.loads((tmp_path / "weights.bin").read_bytes())
        else:
            torch.load(tmp_path / "weights.bin", weights_only=False)
        assert (tmp_path / MARKER).exists()
        (tmp_path / MARKER).unlink()


@pytest.mark.parametrize("write", [plain, zipped])
def test_pickled_weights_run_nothing(said, model: Path, tmp_path: Path, write: Any) -> None:
    theirs = copy(model, tmp_path / "theirs")
    (theirs / "model.safetensors").unlink()
    write(theirs / "pytorch_model.bin")
    run, text = said(*SHORT, *using(theirs))
    assert run.code == ExitCode.FAILED
    assert f"a pickled file in {theirs} holds something that is not a tensor" in text
    assert "weights_only" not in text + run.record["error"]["traceback"]  # torch says how to run it


@pytest.mark.slow
def test_pickled_tensors_are_loaded(said, model: Path, tmp_path: Path) -> None:
    theirs = copy(model, tmp_path / "theirs")
    torch.save(load_file(theirs / "model.safetensors"), theirs / "pytorch_model.bin")
    (theirs / "model.safetensors").unlink()
    assert said(*SHORT, *using(theirs))[0].code == 0


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "words", [("recipe=sft",), ("recipe=chat", "prompt=hi"), ("recipe=evaluate",), ("recipe=merge",)]
)
def test_pickled_adapter_runs_nothing(said, trained: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    for write in (plain, zipped):
        adapter = copy(trained / "adapter", tmp_path / write.__name__)
        (adapter / "adapter_model.safetensors").unlink()
        write(adapter / "adapter_model.bin")
        more = SHORT if words == ("recipe=sft",) else (*SHORT[2:3], "data=orders")
        run, text = said(*more, *words, f"adapter={adapter}", folder=write.__name__ + "-run")
        assert run.code in (ExitCode.FAILED, ExitCode.CONFIG_ERROR)
        assert str(adapter) in text
        assert not list(run.folder.rglob("*.safetensors"))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_pickles_of_a_checkpoint_run_nothing(
    said, trained: Path, tmp_path: Path, name: str, sealed: bool
) -> None:
    """Also with a manifest to match, which anyone can write; the library's own arguments are never read."""
    run = copy(trained, tmp_path / "theirs")
    saved = run / "checkpoints" / "checkpoint-1"
    zipped(saved / name)
    if sealed:
        manifest = json.loads((saved / checkpoint.MANIFEST).read_text())
        size = (saved / name).stat().st_size
        manifest["files"][name] = {"bytes": size, "xxh3_128": xxh3_of_file(saved / name)}
        (saved / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    ended, _ = said("--config-path", str(run), "--config-name", "config", f"resume={saved}")
    unread = sealed and name == "training_args.bin"
    assert ended.code == (0 if unread else ExitCode.FAILED if sealed else ExitCode.CONFIG_ERROR)
    assert (ended.folder / "adapter").exists() == unread


def test_index_names_files_of_its_own_folder(said, model: Path, tmp_path: Path) -> None:
    theirs = copy(model, tmp_path / "theirs")
    (theirs / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (theirs / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    run, text = said(*SHORT, *using(theirs))
    assert run.code == ExitCode.CONFIG_ERROR
    assert "names a file outside of it: ../outside.safetensors" in text


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TURNS = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
NESTED = (
    "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)
TEMPLATES = {
    "reaches": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "reaches for what it may not have"),
    "calls": ("{{ cycler.__init__.__globals__.os.system('touch $MARKER') }}", "reaches for what it may not"),
    "formats": ("{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}", "reaches for what it may not"),
    "loops": (LOOP, "it takes more than 5 seconds"),
    "swells": ("{{ 'x' * 10000000000 }}", "it takes more than 1 GiB of memory"),
    "pads": ("{{ '%9999999999d' % 1 }}", "it takes more than 1 GiB of memory"),
    "raises": ("{{ 7 ** 10 ** 9 }}", "line 1 uses **"),
    # well behaved until there are rows
    "swells later": (
        "{% if messages|length > 1 %}{{ 'x' * 10000000000 }}{% endif %}" + TURNS,
        "1 GiB of memory",
    ),
    # one call into C, which no handler of a signal interrupts
    "compares": (NESTED + "{{ ns.a == ns.b }}" + TURNS, "seconds"),
    "compares later": (
        NESTED + "{% if 'order' in messages|string|lower %}{{ ns.a == ns.b }}{% endif %}" + TURNS,
        "seconds",
    ),
    "ignores": ("{{ eos_token }}{% for m in messages %}{{ m.role }}{% endfor %}", "writes the same whatever"),
    "calls later": (
        "{% if messages|length > 1 %}{{ cycler.__init__.__globals__ }}{% endif %}" + TURNS,
        "'__init__' of 'type' object is unsafe",
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "loops" else kind for kind in TEMPLATES]
)
def test_template_of_a_config_stays_in_its_box(said, tmp_path: Path, kind: str, monkeypatch) -> None:
    if kind.startswith("compares"):
        monkeypatch.setattr(limits, "HARD_SECONDS", 1.0)  # of seven, which would only take longer
    template, reason = TEMPLATES[kind]
    (tmp_path / "theirs" / "template").mkdir(parents=True)
    (tmp_path / "theirs" / "template" / "odd.yaml").write_text(json.dumps({"chat_template": template}))
    began = time.monotonic()
    run, text = said(*TINY, "--config-dir", "theirs", "template=odd")
    assert run.code == ExitCode.CONFIG_ERROR
    assert reason in text
    assert time.monotonic() - began < 60  # not for ever
    assert not run.folder.exists()


def test_template_of_a_tokenizer_stays_in_its_box(said, model: Path, tmp_path: Path) -> None:
    theirs = copy(model, tmp_path / "theirs")
    (theirs / "chat_template.jinja").write_text(TEMPLATES["calls"][0], encoding="utf-8")
    run, text = said(*SHORT, *using(theirs))
    assert run.code == ExitCode.CONFIG_ERROR
    assert "model.path, its chat template: the template reaches for what it may not have" in text


def test_template_of_an_adapter_stays_in_its_box(said, trained: Path, tmp_path: Path) -> None:
    """What a run has saved beside its adapter is its config; the adapter's own copy is not used."""
    theirs = copy(trained, tmp_path / "theirs")
    (theirs / "adapter" / "chat_template.jinja").write_text(TEMPLATES["swells"][0], encoding="utf-8")
    run, _ = said("recipe=chat", "prompt=hi", "chat.max_new_tokens=2", f"adapter={theirs}", folder="plain")
    assert run.code == 0
    config = (theirs / "config.yaml").read_text(encoding="utf-8")
    crafted = config.replace("chat_template: null", f"chat_template: {json.dumps(TEMPLATES['swells'][0])}")
    assert crafted != config
    (theirs / "config.yaml").write_text(crafted, encoding="utf-8")
    run, text = said("recipe=chat", "prompt=hi", f"adapter={theirs}")
    assert run.code == ExitCode.CONFIG_ERROR
    assert "template.chat_template: it takes more than 1 GiB of memory" in text


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["theirs.py", "rows.pkl", "rows.pickle"])
def test_data_set_of_the_hub_runs_nothing(said, tmp_path: Path, monkeypatch, name: str) -> None:
    """``datasets`` itself reads the folder, in place of a repository of the hub."""
    (tmp_path / "theirs").mkdir()
    if name == "theirs.py":
        (tmp_path / "theirs" / name).write_text(CODE, encoding="utf-8")
    else:
        plain(tmp_path / "theirs" / name)
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda _, *args, **given: load("./theirs", *args, **given))
    run, text = said(*SHORT, "data=file", "data.path=them/theirs", "data.eval_path=null", "data.metric=null")
    assert run.code == ExitCode.CONFIG_ERROR
    assert "the hub gave no data set" in text


CODE = """import os; os.system('touch "$MARKER"')
from transformers import LlamaConfig as TheirConfig
"""


def with_code(model: Path, folder: Path, **changes: str) -> Path:
    """A copy of a model that brings a configuration class of its own."""
    theirs = copy(model, folder)
    values = json.loads((theirs / "config.json").read_text(encoding="utf-8"))
    values |= {"auto_map": {"AutoConfig": "theirs.TheirConfig"}, **changes}
    (theirs / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (theirs / "theirs.py").write_text(CODE, encoding="utf-8")
    return theirs


@pytest.mark.slow
def test_code_of_a_model_is_left_alone_and_that_is_said(said, model: Path, tmp_path: Path) -> None:
    run, text = said(*SHORT, *using(with_code(model, tmp_path / "known")))
    assert "brings code of its own, which is not run: the classes of transformers are used" in text
    assert any("brings code of its own" in note for note in run.record["notes"])
    assert run.record["model"]["trust_remote_code"] is False
    theirs = with_code(model, tmp_path / "unknown", model_type="theirs")
    run, text = said(*SHORT, *using(theirs), folder="refused")
    assert run.code == ExitCode.CONFIG_ERROR
    assert "if you trust its code: model.trust_remote_code=true" in text


def test_code_of_a_model_is_run_where_the_user_says_so(said, model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(LlamaConfig, "_auto_class", None)  # the library marks the class of their code
    theirs = with_code(model, tmp_path / "theirs")
    run, _ = said(*SHORT, *using(theirs), "model.trust_remote_code=true")
    assert (tmp_path / MARKER).exists()
    (tmp_path / MARKER).unlink()
    assert run.record["model"]["trust_remote_code"] is True
    assert run.record["model"]["digests"]["code"].startswith("sha256:")
    again = ["--config-path", str(run.folder), "--config-name", "config"]
    assert said(*again, folder="refused")[0].code == ExitCode.CONFIG_ERROR
    command = (run.folder / "config.yaml").read_text(encoding="utf-8").splitlines()[1]
    words = [word for word in command.split() if word.startswith("model.")]  # as the file itself says
    run, _ = said(*again, *words, folder="again")
    assert (run.code, run.record["model"]["trust_remote_code"]) == (0, True)
    (tmp_path / MARKER).unlink(missing_ok=True)  # the module may be there from the first time


def test_adapter_does_not_bring_trust_in_code(said, model: Path, trained: Path, tmp_path: Path) -> None:
    theirs = with_code(model, tmp_path / "model")
    adapter = copy(trained / "adapter", tmp_path / "adapter")
    facts = json.loads((adapter / "base.json").read_text(encoding="utf-8"))
    facts["model"] |= {"trust_remote_code": True, "path": str(theirs)}
    (adapter / "base.json").write_text(json.dumps(facts), encoding="utf-8")
    run, text = said("recipe=chat", "prompt=hi", f"adapter={adapter}")
    assert run.code == ExitCode.CONFIG_ERROR
    assert "add it to the command line: model.trust_remote_code=true" in text
