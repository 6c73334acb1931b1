"""Put saved adapters on a base, and refuse each that does not fit it, is not complete or is not finite.

PEFT warns of tensors that are missing, which leaves a part of the adapter as it was drawn, and skips those
that have no place; a run would go on with something that nobody has trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runner.config.adapters import Adapter, adapters
from runner.config.lora_rules import rewrites_base
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue, RunnerError
from runner.models.check_files import tensors_only
from runner.models.empty_model import empty_model, module_names
from runner.models.module_patterns import unbounded_patterns

if TYPE_CHECKING:
    from peft import PeftConfig

    from runner.models.base import Base

# Stands for the modules of a model whose own code names them.
_NAMES = ("model.layers.0.self_attn.q_proj", "transformer.h.0.mlp.c_fc", "lm_head")
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What PEFT raises for adapters that do not fit.
_MISFITS = (ValueError, RuntimeError, KeyError, TypeError, AttributeError, NotImplementedError, re.error)
# Parameters of PEFT that all layers share: its file has them once, or not at all.
_SHARED = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")
# Initialisations of PEFT that read no weights of the base, so that an empty model can have them.
_PLAIN_INITS = ("gaussian", "orthogonal", "eva", "mica")
REPEATS = "repeats layers of the base (layer_replication)"
# Keys of ``lora`` that name modules.
_NAMING = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters", "rank_pattern")


def check_shape(config: RunConfig) -> None:
    """Check that the ``lora`` section fits the adapter that is trained further, and its task."""
    for adapter in adapters(config):
        shape = adapter.config
        if read_config(adapter).is_prompt_learning:
            message = f"PEFT loads an adapter of kind {shape['peft_type']} to use it, not to train it further"
            raise ConfigError(Issue(_where(adapter), message, "leave adapter out, and train a new one"))
        issues = [
            Issue(f"lora.{key}={value}", f"adapter={adapter.folder} has {key}={shape[key]}, and keeps it")
            for key, value in config.lora.items()
            if key in shape and isinstance(value, (int, float, bool)) and value != shape[key]
        ]
        issues += [
            Issue(f"lora.{key}={_shown(config.lora[key])}", f"adapter={adapter.folder} keeps its own")
            for key in _NAMING
            if config.lora.get(key) and _names_others(adapter, key, config.lora[key])
        ]
        if rewrites_base(init := shape.get("init_lora_weights")):
            message = f"was saved for the base that {init} had changed, which was not saved"
            hint = "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...) converts it"
            issues.append(Issue(_where(adapter), message, hint))
        if shape.get("layer_replication"):
            issues.append(Issue(_where(adapter), REPEATS, "it can be evaluated, and chatted with"))
        if issues:
            raise ConfigError(issues)


def _names_others(adapter: Adapter, key: str, value: Any) -> bool:
    """Whether a key names other modules than the adapter has, which may say them in the words of its run, or
    by the names that these stood for."""
    own = adapter.sections.get("lora")
    if not own and value == "all-linear":
        return False
    return _shown(value) not in (_shown(adapter.config.get(key)), _shown((own or {}).get(key)))


def _shown(value: Any) -> str:
    return f"[{','.join(sorted(map(str, value)))}]" if isinstance(value, list) else str(value)


@contextmanager
def refusing_misfits(adapter: Adapter) -> Iterator[None]:
    """What PEFT raises for an adapter that does not fit its base, as ``ConfigError``."""
    try:
        with tensors_only(adapter.folder):
            yield
    except RunnerError:
        raise
    except _MISFITS as error:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split()).partition("state_dict for ")[2] or str(error)
        reason = " ".join(reason.split())[:300].replace(f".{adapter.name}", "")
        reason += " is not in its file" if isinstance(error, KeyError) else ""
        raise ConfigError(Issue(_where(adapter), f"does not fit the base: {reason}")) from error


def add_saved(model: Any, adapter: Adapter, wrapped: Any = None) -> Any:
    """``model``, or the PEFT model ``wrapped`` that it is in already, with one more adapter of a folder.

    The adapter's tensors are in main memory; the model may be one without weights. Raises ``ConfigError``
    where PEFT finds a tensor missing, in excess or of another shape.
    """
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel

    shape = read_config(adapter)
    shape.inference_mode = True
    renamed = {} if shape.is_prompt_learning else getattr(model, "_checkpoint_conversion_mapping", {})
    with refusing_misfits(adapter):
        if wrapped is None:
            kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(shape.task_type), PeftModel)
            wrapped = kind(model, shape, adapter_name=adapter.name, low_cpu_mem_usage=True)
        result = wrapped.load_adapter(
            str(adapter.folder),
            adapter.name,
            torch_device="cpu",
            low_cpu_mem_usage=True,
            key_mapping=renamed,
        )
    # what layers share is saved once, and missing in each of them
    missing = [key for key in result.missing_keys if not any(name in key for name in _SHARED)]
    # what an adapter of the prompt has is not in the model's own state, and is loaded strictly by itself
    unexpected = [] if shape.is_prompt_learning else result.unexpected_keys
    _refuse_incomplete(adapter, missing, unexpected)
    return wrapped


def check_loaded(wrapped: Any, adapter: Adapter, name: str) -> None:
    """Check that an adapter has been loaded completely, where it could not be tried on an empty model.

    Raises ``ConfigError``.
    """
    remote = type(wrapped.get_base_model()).__module__.startswith("transformers_modules")
    if _tried(adapter, remote):
        return
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    found = _tensors(adapter).keys()
    _refuse_incomplete(adapter, [*(expected.keys() - found)], [*(found - expected.keys())])


def check_adapters(base: Base, found: list[Adapter], classes: list[str] | None = None) -> list[str]:
    """Check that adapters fit the base, before its weights are loaded, and return warnings.

    ``classes`` are the outputs of their head, where they have one. Raises ``ConfigError``.
    """
    notes: list[str] = []
    issues: list[Issue] = []
    names = (module_names(base) or _NAMES) if found else ()
    for adapter in found:
        try:
            notes += _unknown_keys(adapter, read_config(adapter))
            issues += unbounded_patterns(_where(adapter), adapter.config, names)
            notes += _repeated_layers(adapter, alone=len(found) == 1)
            notes += [*_check_file(adapter), *_other_template(adapter, base.tokenizer.chat_template)]
        except ConfigError as error:
            issues += error.issues
    issues = issues or list(_other_kinds(found))
    if issues:
        raise ConfigError(issues)
    for adapter in on_empty(base, found):
        add_saved(empty_model(base, classes), adapter)
    return notes


def on_empty(base: Base, found: list[Adapter]) -> list[Adapter]:
    """The adapters that can be put on an empty model of this base."""
    return [adapter for adapter in found if _tried(adapter, base.settings.trust_remote_code)]


def read_config(adapter: Adapter) -> PeftConfig:
    """An adapter's PEFT config. Raises ``ConfigError`` for one that PEFT cannot read."""
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(adapter.folder))
    except Exception as error:  # of many kinds, as the values go straight into a data class
        message = f"PEFT cannot read its adapter_config.json: {_first_line(error)}"
        raise ConfigError(Issue(_where(adapter), message)) from error


def _tried(adapter: Adapter, remote: bool) -> bool:
    """Whether an adapter is put on an empty model first: modelling code from elsewhere (``remote``) may not
    stand one, and some initialisations want weights."""
    init = getattr(read_config(adapter), "init_lora_weights", None)
    return not remote and (not isinstance(init, str) or init in _PLAIN_INITS)


def _check_file(adapter: Adapter) -> list[str]:
    """The adapter's weights are there, readable, numbers with fractions and finite.

    Returns a warning where all of them are zero. Raises ``ConfigError``.
    """
    import torch

    tensors = _tensors(adapter)
    if whole := [name for name, value in tensors.items() if not value.is_floating_point()]:
        message = f"{len(whole)} of its tensors hold {_dtype(tensors[whole[0]])}, {whole[0]} first"
        raise ConfigError(Issue(_where(adapter), message, "PEFT saves weights as floats: save it again"))
    broken = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        message = f"{len(broken)} of its tensors hold NaN or infinity, {broken[0]} first"
        raise ConfigError(Issue(_where(adapter), message, "the training that made it has diverged"))
    last = [
        value for name, value in tensors.items() if ".lora_B." in name
    ]  # as they are drawn, these are zero
    if last and all(".lora_" in name for name in tensors) and not any(value.any() for value in last):
        return [f"{adapter.folder}: changes nothing, as every lora_B is zero, as before training"]
    return []


def _other_kinds(found: list[Adapter]) -> Iterator[Issue]:
    """An issue for each adapter of another kind than the first: PEFT puts those of one kind on a base."""
    kinds = [str(adapter.config["peft_type"]) for adapter in found]
    for adapter, kind in zip(found, kinds, strict=True):
        if kind != kinds[0]:
            message = f"is of kind {kind}, and {found[0].folder} of kind {kinds[0]}: no base has both at once"
            yield Issue(_where(adapter), message, "one run for each kind")


def _repeated_layers(adapter: Adapter, alone: bool) -> list[str]:
    """A warning where an adapter repeats layers of its base, which all that is on that base then has.

    Raises ``ConfigError`` where other adapters are on it.
    """
    if not adapter.config.get("layer_replication"):
        return []
    if not alone:
        hint = "one run for each adapter"
        raise ConfigError(Issue(_where(adapter), f"{REPEATS}, under the other adapters too", hint))
    return [f"{adapter.folder}: {REPEATS}: what is scored as the base has them repeated too"]


def _other_template(adapter: Adapter, used: str | None) -> list[str]:
    """A warning where an adapter comes with another chat template than the one that is used with it."""
    file = adapter.folder / "chat_template.jinja"
    if not used or not file.is_file():
        return []
    if file.read_text(encoding="utf-8", errors="replace").strip() == used.strip():
        return []
    hint = f"template.chat_template={file} uses it"
    return [f"{adapter.folder}: its chat_template.jinja is not the template that is used; {hint}"]


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tensors(adapter: Adapter) -> dict[str, Any]:
    """The tensors of an adapter's file by name. Raises ``ConfigError`` for one that cannot be read."""
    from pickle import UnpicklingError

    import torch
    from safetensors.torch import load_file

    file = next((adapter.folder / name for name in _WEIGHTS if (adapter.folder / name).is_file()), None)
    if file is None:  # PEFT would look for it on the hub
        raise ConfigError(Issue(_where(adapter), f"holds no {_WEIGHTS[0]}"))
    with tensors_only(adapter.folder):
        try:
            if file.suffix == ".bin":
                return torch.load(file, map_location="cpu", weights_only=True)
            return load_file(file)
        except UnpicklingError:
            raise  # which tensors_only explains
        except Exception as error:  # what a damaged file raises depends on the byte that is damaged
            raise ConfigError(Issue(str(file), f"is damaged: {_first_line(error)}")) from error


def _refuse_incomplete(adapter: Adapter, missing: list[str], unexpected: list[str]) -> None:
    named = f".{adapter.name}"  # PEFT's own name of it, which is not in its file
    issues: list[Issue] = []
    for keys, message in (
        (unexpected, "have no place in the base"),
        (missing, "that the base needs are not there"),
    ):
        if keys:
            first = sorted(keys)[0].replace(named, "")
            issues.append(Issue(_where(adapter), f"{len(keys)} of its tensors {message}, {first} first"))
    if issues:
        raise ConfigError(issues)


def _unknown_keys(adapter: Adapter, shape: PeftConfig) -> list[str]:
    """A warning for keys that this PEFT does not know: they may say what the adapter computes."""
    unknown = sorted(key for key, value in adapter.config.items() if not hasattr(shape, key) and value)
    if not unknown:
        return []
    return [f"{adapter.folder}: this PEFT does not know, and leaves out, {', '.join(unknown)} of its config"]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _where(adapter: Adapter) -> str:
    return f"adapter={adapter.folder}"
