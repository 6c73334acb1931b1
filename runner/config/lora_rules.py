"""Rules about the section ``lora``: what PEFT takes and a run would train without, or not at all; and the
regular expressions in it, each as PEFT matches it with names of modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runner.config.origins import Origins
from runner.core.errors import Issue

MOST_CHARACTERS = 5_000  # of one pattern; a list of all modules of a large model has 3,000
NO_PATTERN = "names of modules, [q_proj, v_proj], need none"
_WORDS = ("all-linear", "attention")  # of target_modules: no patterns
_PLAIN = re.compile(r"[\w./-]*")  # of a name that is no pattern

# Adapters of PEFT that no trainer here can train, by class.
_CLASSES = {
    "peft.CPTConfig": "wants the kind of every token beside it, which no rows have here",
    "peft.MultitaskPromptTuningConfig": "wants the number of a task in every row, which no rows have here",
    "peft.PolyConfig": "wants the number of a task in every row, which no rows have here",
    "peft.ShadowConfig": "adds a loss of its own, which no trainer here adds up",
    "peft.XLoraConfig": "weighs adapters that are trained already, and a run trains one",
}
# Initialisations of which PEFT wants to see the rows, each with its function that takes them.
_OF_ROWS = {"corda": "preprocess_corda", "eva": "initialize_lora_eva_weights"}
_CONFIG_OF_ROWS = "is of an initialisation that reads the rows, which no run makes"
# Fields of LoRA that would have no effect, or one on more than the adapter.
_FIELDS = {
    "arrow_config": "chooses among adapters that are trained already, and a run trains one",
    "corda_config": _CONFIG_OF_ROWS,
    "eva_config": _CONFIG_OF_ROWS,
    "lora_ga_config": _CONFIG_OF_ROWS,
    "kasa_config": "cuts the base's own weights, and wants a term in the loss that no trainer here adds",
    "monteclora_config": "wants a term in the loss that no trainer here adds",
    "layer_replication": "makes a base of other layers, which base scores, plan and merge know nothing of",
}
# Initialisations that rewrite the base weights, and those that PEFT computes in the type that these have.
_REWRITING = ("pissa", "olora", "corda", "lora_ga")
_IN_TYPE_OF_BASE = ("mica", "orthogonal")
# Fields of LoRA that PEFT has no form of for a quantised base.
_NOT_QUANTISED = ("use_bdlora", "velora_config")
# Fields of LoRA that AdaLoRA inherits and does not read.
_UNREAD = (
    *("r", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias", "velora_config", "use_bdlora"),
    *("use_qalora", "alora_invocation_tokens"),
)


def rewrites_base(init: object) -> bool:
    """Whether an ``init_lora_weights`` takes the adapter's first product out of the base weights."""
    return isinstance(init, str) and init.startswith(_REWRITING)


def check_lora(values: dict[str, Any], origins: Origins) -> Iterator[Issue]:
    """An issue for each value of ``lora`` that PEFT takes, and that a run would train without, or fail."""
    lora = values.get("lora") or {}
    found = [*_check_class(lora), *_check_start(lora, values.get("quantization") or {})]
    for name, message, hint in found:
        yield Issue(origins.where(f"lora.{name}"), f"lora.{name}{message}", hint)


def _check_class(lora: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    kind = str(lora.get("_target_"))
    if reason := _CLASSES.get(kind):
        yield "_target_", f"={kind} {reason}", "lora=r16, or another of conf/lora"
    for name in (name for name, value in lora.items() if value):
        if reason := _FIELDS.get(name):
            yield name, f" {reason}", "leave it out"
        elif kind == "peft.AdaLoraConfig" and name in _UNREAD:
            yield name, " is a field of LoRA that AdaLoRA does not read", "leave it out"


def _check_start(lora: dict[str, Any], quantization: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What PEFT cannot start from, or not on a quantised base."""
    key = "init_lora_weights"
    init = lora.get(key)
    if lora.get("_target_") == "peft.AdaLoraConfig" and isinstance(init, str):
        yield key, f"={init} is of LoRA: AdaLoRA does not read it", "leave it out"
    elif isinstance(init, str) and init in _OF_ROWS:
        reason = f"={init} wants PEFT to see the rows first ({_OF_ROWS[init]}), which no run has it do"
        yield key, reason, "pissa_niter_4 and olora start from the base's weights alone"
    elif init == "loftq" and not quantization.get("load_in_4bit"):
        reason = "=loftq makes up for the error of a 4-bit base, and this base is not 4-bit"
        yield key, reason, "quantization=nf4, or another lora=..."
    elif quantization and rewrites_base(init):
        reason = f"={init} changes the base weights, which a quantised base does not allow"
        yield key, reason, "quantization=none, or init_lora_weights=true"
    elif quantization and init in _IN_TYPE_OF_BASE:
        reason = f"={init} is computed in the type of the base's weights, and quantised ones are no floats"
        yield key, reason, "quantization=none, or init_lora_weights=true"
    elif rewrites_base(init) and lora.get("use_bdlora"):
        reason = f"={init} is saved as an adapter of twice the rank, which one of block diagonals cannot be"
        yield key, reason, "init_lora_weights=true, or leave lora.use_bdlora out"
    for name in _NOT_QUANTISED:
        if quantization and lora.get(name):
            yield name, ": PEFT has no form of it for a quantised base", "quantization=none, or leave it out"


@dataclass(frozen=True)
class Pattern:
    """A pattern as given for ``key``, and the ``regex`` that PEFT makes of it (``whole``: fullmatch)."""

    key: str
    given: str
    regex: str
    whole: bool = False

    @property
    def is_name(self) -> bool:
        """Whether it is the plain name of a module, which takes no time to match."""
        return bool(_PLAIN.fullmatch(self.given))


def patterns(section: Mapping[str, Any]) -> list[Pattern]:
    """The patterns of a PEFT config's fields (peft 0.21: ``match_target_against_key``, ``get_pattern_key``,
    ``check_target_module_exists``)."""
    found = []
    for name, value in section.items():
        texts = [value] if isinstance(value, str) else value if isinstance(value, (list, dict)) else []
        texts = [text for text in texts if isinstance(text, str)]
        if name == "layers_pattern":
            found += [Pattern(name, text, rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\.") for text in texts]
        elif name.endswith("_pattern"):
            found += [Pattern(name, text, rf"(.*\.)?({text})$") for text in texts]
        elif name == "modules_to_save":
            found += [Pattern(name, text, rf"(^|.*\.){text}($|\..*)") for text in texts]
        elif name == "target_svd_config":
            found += [Pattern(name, text, rf".*?({text})") for text in texts]
        elif name.endswith("_modules") and isinstance(value, str) and value not in _WORDS:
            found.append(Pattern(name, value, value, whole=True))
    return found


def check_patterns(values: dict[str, Any], origins: Origins) -> Iterator[Issue]:
    """An issue for each pattern of the section ``lora`` that is no regular expression."""
    for pattern in patterns(values.get("lora") or {}):
        key = f"lora.{pattern.key}"
        if reason := not_regular(pattern):
            message = f"{key}: {pattern.given[:80]!r} is not a regular expression: {reason}"
            yield Issue(origins.where(key), message, NO_PATTERN)


def not_regular(pattern: Pattern) -> str | None:
    """Why a pattern is no regular expression; None if it is one."""
    if len(pattern.given) > MOST_CHARACTERS:
        return f"it has more than {MOST_CHARACTERS:,} characters"
    try:
        re.compile(pattern.given)  # by itself first: "a)(b" is one only inside PEFT's brackets
        re.compile(pattern.regex)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return None
