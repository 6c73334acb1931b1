"""Whatever a config or a command line holds, its check ends with our own error, or with a config that can be
saved and composed again.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes import OBJECTIVES
from runner.cli import run_config
from runner.cli.saved_config import to_yaml
from runner.config.checks import SECTIONS, known_fields
from runner.config.settings import RunConfig
from runner.config.trust import code_words
from runner.core.errors import ConfigError, ExitCode

TARGETS = {
    "lora": "peft.LoraConfig",
    "trainer": "trl.SFTConfig",
    "quantization": "transformers.BitsAndBytesConfig",
}
KEYS = [
    *RunConfig.__dataclass_fields__,
    *(f"{section}.{name}" for section in SECTIONS for name in known_fields(section, TARGETS.get(section))),
    *(
        "hydra.mode",
        "hydra.sweeper.params",
        "hydra.launcher",
        "hydra.job.name",
        "hydra.verbose",
        "hydra.sweep.dir",
    ),
    *("defaults", "_target_", "lora._target_", "nope", "a.b.c"),
]
SECONDS = 20.0

odd_texts = st.sampled_from(
    [
        "",
        "???",
        "null",
        "${",
        "${a}",
        "${seed}",
        "${trainer}",
        "${now:%f}",
        "${oc.env:HOME}",
        "\\${x}",
        "[",
        "{a: 1}",
        "1e999",
        "-1",
        "..",
        "../..",
        "~",
        "/dev/null",
        "/",
        "\x00",
        "\n",
        "\ud7ff",
        "\u2028",
        "a,b",
        "a=b",
        "@",
        "none",
        "(q_proj",
        "all-linear",
        "auto",
        "cuda:9",
        "x" * 300,
        "os.system",
        "'",
        '"',
        "é",
        "$(id)",
        "8,16",
    ]
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 10), st.floats(), odd_texts, st.text(max_size=12)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(odd_texts | st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=6,
)
mappings = st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=4)
words = st.one_of(
    st.builds(
        lambda sign, key, value: f"{sign}{key}={value}",
        st.sampled_from(["", "+", "++", "~"]),
        st.sampled_from(KEYS),
        odd_texts | st.text(max_size=12) | values.map(str),
    ),
    st.sampled_from(
        [
            "-m",
            "--help",
            "lora=r8",
            "model=tiny",
            "recipe=dpo",
            "recipe=chain",
            "experiment=orders-sweep",
            "hydra/sweeper=optuna",
            "hydra/launcher=basic",
            "data=mix",
            "quantization=nf4",
            "lora=none",
        ]
    ),
    st.text(max_size=15).filter(lambda text: not text.startswith("-")),
)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Keys with dots as mappings in each other; of two that clash the first."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        inside = found
        *path, last = key.split(".")
        for part in path:
            inside = inside.setdefault(part, {}) if isinstance(inside, dict) else inside
        if isinstance(inside, dict):
            inside.setdefault(last, value)
    return found


def check(*typed: str) -> None:
    began = time.monotonic()
    configs: list[RunConfig] = []
    try:
        configs = run_config.check(run_config.parse(list(typed), OBJECTIVES)).configs
    except (ConfigError, SystemExit) as error:  # a flag without its value ends the process with code 2
        code = getattr(error, "code", None)
    else:
        code = ExitCode.COMPLETED
    assert code in (ExitCode.COMPLETED, ExitCode.CONFIG_ERROR)
    for config in configs[:1]:
        again(config)
    assert time.monotonic() - began < SECONDS


def again(config: RunConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        typed = ["--config-path", folder, "--config-name", "config", *code_words(config)]
        [same] = run_config.check(run_config.parse(typed, OBJECTIVES)).configs
    assert repr(same) == repr(dataclasses.replace(config, output_dir=None))


def experiments(flat: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "experiment", "theirs.yaml")
        file.parent.mkdir()
        text = "# @package _global_\n" + yaml.safe_dump(nested(flat), allow_unicode=True)
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        check("model=tiny", "--config-dir", folder, "experiment=theirs")


def commands(typed: list[str]) -> None:
    if "--help" in typed:
        typed = [word for word in typed if word != "--help"]
    check("model=tiny", *typed)


def raw_files(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "experiment", "theirs.yaml")
        file.parent.mkdir()
        file.write_bytes(content)
        check("model=tiny", "--config-dir", folder, "experiment=theirs")


mutated = st.builds(
    lambda text, at, junk: text[: at % len(text)] + junk + text[at % len(text) + len(junk) // 2 :],
    st.sampled_from(
        [
            b"# @package _global_\ntrainer:\n  learning_rate: 1e-4\nlora: {r: 8, target_modules: [q_proj]}\n",
            b"# @package _global_\ndefaults:\n  - override /lora: r8\n  - override /data: mix\nseed: 3\n",
            b"# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      lora.r: 8,16\n",
        ]
    ),
    st.integers(0, 200),
    st.binary(min_size=1, max_size=4)
    | st.sampled_from([b"\t", b": ", b"- ", b"&a ", b"*a", b"${seed}", b"!!x ", b"\xef\xbb\xbf"]),
)

CASES = {
    "experiments": (experiments, mappings),
    "commands": (commands, st.lists(words, min_size=1, max_size=4)),
    "files": (raw_files, mutated),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_only_our_own_errors_leave_the_check(name: str) -> None:
    function, strategy = CASES[name]
    run = given(strategy)(function)
    settings(
        max_examples=50,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(run)()
