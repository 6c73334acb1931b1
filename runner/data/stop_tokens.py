"""Whether the template's delimiters are special tokens, and generation stops after an answer."""

from __future__ import annotations

import re

from runner.core.errors import ConfigError, Issue
from runner.core.hydra_quoting import typed_override
from runner.data.messages import BadRow
from runner.data.template import Renderer
from runner.models.model import Base

_DELIMITER = re.compile(r"<[^<>\s]+>")


def check_turns(base: Base, renderer: Renderer, answers: bool) -> list[str]:
    """Warnings about the delimiters of the chat template; ``answers``: the model learns to write them.

    Raises ``ConfigError`` if answers end with a token at which generation would not stop.
    """
    try:
        text, ends = renderer.sample_turn()
    except BadRow:
        return []  # the template wants other messages than these; each row is checked when it is rendered
    vocabulary = base.tokenizer.get_vocab()
    stops = {base.tokenizer.eos_token, *base.tokenizer.convert_ids_to_tokens(_stop_ids(base))}
    if answers and not stops & set(ends):
        shown = ", ".join(map(repr, sorted(stops)))
        message = f"the template ends an answer with {ends[0]!r}, but generation stops at {shown} only"
        typed = typed_override("template.stop", ends[0])
        hint = f"{typed} makes it stop there; data.format=text is for plain text"
        raise ConfigError(Issue("template.stop", message, hint))
    pieces = [
        delimiter for delimiter in dict.fromkeys(_DELIMITER.findall(text)) if delimiter not in vocabulary
    ]
    if not pieces:
        return []
    found = f"the chat template's delimiters {', '.join(pieces)} are not special tokens of this tokenizer"
    return [f"{found}: each is several tokens, and an answer ends with {ends[0]}"]


def _stop_ids(base: Base) -> list[int]:
    """The tokens at which the model was made to stop, as transformers will load them."""
    from transformers import GenerationConfig

    settings = GenerationConfig.from_model_config(base.config)
    if base.folder is not None and (base.folder / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(base.folder)
    own = settings.eos_token_id
    return own if isinstance(own, list) else [own] if own is not None else []
