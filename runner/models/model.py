"""Load or build the base model and its tokenizer; decide the number formats they run in."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from runner.config.settings import ModelSettings, RunConfig
from runner.core import environment
from runner.core.atomic import sha256_of, sha256_of_files
from runner.core.errors import ConfigError, Issue
from runner.core.paths import ARCHITECTURES, CONFIG_DIR
from runner.models.locate import find_model, tensors_only

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

# The files of a tokenizer, of any kind.
_TOKENIZER = ("tokenizer*", "*.model", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
# Special tokens of the byte-level tokenizer, in the order of their ids from 256 on.
_BYTE_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@dataclass
class Base:
    """What ``model`` names, before weights are loaded: config, tokenizer and folder (None: random)."""

    settings: ModelSettings
    config: PreTrainedConfig
    tokenizer: Any
    folder: Path | None
    revision: str | None = None
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {
            "name": self.settings.architecture or Path(str(self.settings.path)).name,
            "path": self.settings.path,
            "weights": self.settings.weights,
            "revision": self.revision,
            "architecture": type(self.config).__name__,
            "trust_remote_code": self.settings.trust_remote_code,
            "digests": self._digests(),
        }

    def _digests(self) -> dict[str, str]:
        """What decides beside the weights: the template in use, the tokenizer, and code if it is run."""
        found = {"template": sha256_of(str(self.tokenizer.chat_template))}
        if self.folder is None:
            return found
        files = {"tokenizer": _TOKENIZER, "code": ("*.py",) if self.settings.trust_remote_code else ()}
        for name, patterns in files.items():
            if paths := sorted({path for pattern in patterns for path in self.folder.glob(pattern)}):
                found[name] = sha256_of_files(paths)
        return found


@dataclass(frozen=True)
class Precision:
    """Number formats of a run: of the frozen weights, and of the autocast of the step, if there is any."""

    name: str
    dtype: torch.dtype
    autocast: torch.dtype | None


def device() -> torch.device:
    """The device of this process: its CUDA device (``LOCAL_RANK`` under a launcher), Apple's, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_precision(config: RunConfig) -> Precision:
    """Resolve ``trainer.precision`` and ``model.dtype``.

    ``auto`` is bf16 where the hardware computes in it (CUDA from Ampere on, CPUs with AVX512-BF16 or AMX),
    fp16 on older CUDA, fp32 elsewhere. With full fine-tuning the weights stay in float32 under autocast,
    since bf16 weights lose small updates. The adapter of a quantised base is trained in bf16, as in the QLoRA
    paper (arXiv:2305.14314, section 3) and in TRL; everything being bf16, its step needs no autocast.
    """
    import torch

    trainer, settings = config.trainer, config.model
    name = trainer.get("precision", "auto")
    if name == "auto":
        name = (
            next((known for known in ("bf16", "fp16") if trainer.get(known)), None)
            or environment.native_precision()
        )
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    dtype = dtypes[name] if config.lora else torch.float32
    if settings.dtype != "auto":
        dtype = getattr(torch, settings.dtype)
    pure = name == "fp32" or (name == "bf16" and config.quantization and dtype == torch.bfloat16)
    return Precision(name, dtype, None if pure else dtypes[name])


def find_base(settings: ModelSettings) -> Base:
    """Locate the model's files and load its config and tokenizer, but no weights. Raises ``ConfigError``."""
    # before the import: a model that cannot be found is reported without waiting for it
    found = find_model(str(settings.path), settings.revision) if settings.weights == "pretrained" else None
    from transformers import AutoConfig, AutoTokenizer

    if found is None:
        config = _architecture(str(settings.architecture))
        tokenizer = byte_tokenizer()
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
        return Base(settings, config, tokenizer, None)
    folder = found.folder
    trust = settings.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (ValueError, OSError, KeyError) as error:
        hint = "if you trust its code: model.trust_remote_code=true" if "custom code" in str(error) else ""
        issue = Issue("model.path", f"{settings.path}: {str(error).splitlines()[0]}", hint)
        raise ConfigError(issue) from error
    return Base(
        settings, config, tokenizer, folder, found.revision, (*found.notes, *_left_code(folder, trust))
    )


def _left_code(folder: Path, trust: bool) -> list[str]:
    """A warning when the model's folder brings code of its own that is not run."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() and not trust else {}
        if values.get("auto_map"):
            return [
                f"{folder} brings code of its own, which is not run: the classes of transformers are used; "
                "model.trust_remote_code=true runs it"
            ]
    return []


def load_model(
    base: Base, quantization: Any, dtype: torch.dtype, seed: int, classes: list[str] | None = None
) -> PreTrainedModel:
    """Load the weights, or draw them; ``quantization`` is a transformers quantization config or None.

    Random weights are drawn on the run's device from ``seed`` and then quantised like a checkpoint would be.
    With ``classes`` the model gets a new head, drawn from ``seed``, with one output for each (one class: a
    score) in place of the one for tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, logging, set_seed

    logging.disable_progress_bar()
    settings, where = base.settings, device()
    attention = {"attn_implementation": settings.attn_implementation} if settings.attn_implementation else {}
    placement = settings.device_map or ({"": where} if where.type == "cuda" or quantization else None)
    kind: Any = AutoModelForCausalLM
    head: dict[str, Any] = {}
    if classes is not None:
        kind = AutoModelForSequenceClassification
        base.config.id2label = dict(enumerate(classes))
        base.config.label2id = {name: index for index, name in enumerate(classes)}
        base.config.pad_token_id = base.tokenizer.pad_token_id  # the last token that is no padding is read
        head = {"config": base.config}
    set_seed(seed)
    # given as None, it would hide the folder's own quantisation
    quantised = {"quantization_config": quantization} if quantization is not None else {}
    if base.folder is not None:
        try:
            with tensors_only(base.folder):
                model = kind.from_pretrained(
                    base.folder,
                    **head,
                    dtype=dtype,
                    device_map=placement,
                    **quantised,
                    trust_remote_code=settings.trust_remote_code,
                    **attention,
                )
        except (AttributeError, ImportError, TypeError) as error:
            if not settings.trust_remote_code:
                raise
            message = f"the modelling code that {settings.path} brings fails on this transformers: {error}"
            raise ConfigError(
                Issue("model.path", message, "model.weights=random builds its shape natively")
            ) from error
        return _keep_trainable(model)
    with torch.device(where):
        model = kind.from_config(base.config, dtype=dtype, **attention)
    if quantization is None:
        return model
    # the library's own loading path quantises the state dict as it would a checkpoint
    quantized = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        dtype=dtype,
        device_map=placement,
        quantization_config=quantization,
    )
    return _keep_trainable(quantized)


def _keep_trainable(model: PreTrainedModel) -> PreTrainedModel:
    """Stop bitsandbytes from repacking 4-bit weights for CPU inference.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks them at the first forward pass without gradients and
    never back: every later backward pass through such a layer gives no gradient, without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
    return model


def module_names(config: PreTrainedConfig, trust_remote_code: bool = False) -> dict[str, bool]:
    """Names of all modules, each with whether it is linear, without loading weights; none of remote code."""
    import torch
    from transformers import AutoModelForCausalLM

    if trust_remote_code:
        return {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: isinstance(module, torch.nn.Linear) for name, module in model.named_modules() if name}


def _architecture(name: str) -> PreTrainedConfig:
    from transformers import AutoConfig

    facts = json.loads((ARCHITECTURES / f"{name}.json").read_text(encoding="utf-8"))
    return AutoConfig.for_model(
        facts.pop("model_type"), **{k: v for k, v in facts.items() if not k.startswith("_")}
    )


def byte_tokenizer() -> Any:
    """A tokenizer of the 256 bytes and three control tokens, with the ChatML template; needs no files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_BYTE_SPECIALS))
    start, end, pad = _BYTE_SPECIALS
    chatml = yaml.safe_load((CONFIG_DIR / "template" / "chatml.yaml").read_text(encoding="utf-8"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        chat_template=chatml["chat_template"],
    )
