"""What ``model`` names, before weights are loaded: its config, its tokenizer and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.settings import ModelSettings
from runner.core.atomic import sha256_of, sha256_of_files
from runner.core.errors import ConfigError, Issue
from runner.core.paths import ARCHITECTURES
from runner.models.check_files import check_files, read_object
from runner.models.conversion.chat_templates import chatml_template
from runner.models.locate import find_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The files of a tokenizer, of any kind.
_TOKENIZER = ("tokenizer*", "*.model", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
# Special tokens of the byte-level tokenizer, in the order of their ids from 256 on.
_BYTE_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@dataclass
class Base:
    """What ``model`` names, before weights are loaded: config, tokenizer and folder (None: random).

    ``converted`` says that the folder was made of what ``model.path`` names, as ``Found`` has it.
    """

    settings: ModelSettings
    config: PreTrainedConfig
    tokenizer: Any
    folder: Path | None
    revision: str | None = None
    notes: tuple[str, ...] = ()
    converted: bool = False

    def record(self, quantization: Any = None) -> dict[str, Any]:
        """What ``run.json`` keeps of it; ``quantization`` is the library's config that it is loaded with."""
        quantised = self.quantised(quantization)
        return {
            "name": self.settings.architecture or Path(str(self.settings.path)).name,
            "path": self.settings.path,
            "weights": self.settings.weights,
            "revision": self.revision,
            "converted": self.converted,
            "architecture": type(self.config).__name__,
            **({"quantization": quantised} if quantised else {}),
            "trust_remote_code": self.settings.trust_remote_code,
            "digests": self._digests(),
        }

    def quantised(self, quantization: Any = None) -> dict[str, Any] | None:
        """The fields of the quantization config that it is loaded with, or that its checkpoint has already.

        Its name is that of ``conf/quantization``, or the method's. None where it is not quantised.
        """
        found = quantization or getattr(self.config, "quantization_config", None)
        if not found:
            return None
        fields = found if isinstance(found, dict) else found.to_dict()
        method = fields.get("quant_method", "")
        name = str(getattr(method, "value", method)).removeprefix("rowwise_")
        if fields.get("load_in_4bit"):
            name = fields.get("bnb_4bit_quant_type", "4-bit")
        elif fields.get("load_in_8bit"):
            name = "int8"
        return {"name": name, **{key: value for key, value in fields.items() if not key.startswith("_")}}

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


def method_name(lora: Mapping[str, Any], quantised: Mapping[str, Any] | None) -> str:
    """How a base is trained that is ``Base.quantised``: "Lora", "Lora over nf4", "full fine-tuning"."""
    method = str(lora.get("_target_", "full fine-tuning")).removeprefix("peft.").removesuffix("Config")
    return f"{method} over {quantised['name']}" if quantised else method


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
    notes = [*found.notes, *check_files(folder, trust)]
    part = "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        part = "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        part = "generation_config.json"
        _check_stops(folder / part)
        part = "tokenizer"
        notes += _beyond_embedding(config, tokenizer)
    except ConfigError:
        raise
    except Exception as error:  # what a damaged file raises depends on what is damaged in it
        reason = str(error).strip().partition("\n")[0]
        reason = reason if reason and not isinstance(error, KeyError) else f"{type(error).__name__} {reason}"
        hint = "if you trust its code: model.trust_remote_code=true" if "custom code" in str(error) else ""
        issue = Issue("model.path", f"{settings.path}: its {part} cannot be loaded: {reason}", hint)
        raise ConfigError(issue) from error
    return Base(settings, config, tokenizer, folder, found.revision, tuple(notes), found.converted)


def _check_stops(file: Path) -> None:
    """The values of a generation config that an answer is made with; transformers takes any."""
    values = read_object(file) if file.is_file() else {}
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        given = values.get(key)
        if any(type(each) is not int for each in (given if isinstance(given, list) else [given]) if given):
            raise ConfigError(Issue(str(file), f"{key} is {given!r}, not the number of a token"))
    if values:
        from transformers import GenerationConfig

        GenerationConfig.from_pretrained(file.parent)


def _beyond_embedding(config: PreTrainedConfig, tokenizer: Any) -> list[str]:
    """A warning about tokens that the tokenizer has and the model has no embedding for.

    Some models come with such tokens, for images, which no text becomes. Raises ``ConfigError`` where text
    does, or where the run itself uses one.
    """
    size = int(config.get_text_config().vocab_size)
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= size}
    if not beyond:
        return []
    used = [token for token in beyond if token not in added or token in _special(tokenizer)]
    used += [token for token in beyond if token in str(tokenizer.chat_template) and token not in used]
    said = f"the embedding has {size} rows, and the tokenizer {len(beyond)} tokens beyond them"
    first = min(used or beyond, key=lambda token: beyond[token])
    if used:
        hint = "a tokenizer of this model, or a checkpoint whose embedding was enlarged for this one"
        raise ConfigError(Issue("model.path", f"{said}, {first!r} ({beyond[first]}) first", hint))
    return [f"{said}, {first!r} first: a row with one cannot be read"]


def _special(tokenizer: Any) -> list[Any]:
    return [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]


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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        chat_template=chatml_template(),
    )
