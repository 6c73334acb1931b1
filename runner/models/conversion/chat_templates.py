"""Chat templates of models that were published with a function in their place."""

from __future__ import annotations

import yaml

from runner.core.paths import CONFIG_DIR

_QWEN_SYSTEM = (
    "{%- if messages and messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif -%}"
)
# The role's token is followed by an empty line of metadata. Each part of a prompt begins with a space of its
# own in SentencePiece's tokens, which is written before the content.
CHATGLM3 = (
    "{{- '[gMASK]<sop>' -}}"
    "{%- for m in messages -%}"
    "{{ '<|' + ('observation' if m.role == 'tool' else m.role) + '|>\\n ' + m.content }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def chatml_template() -> str:
    """ChatML, as ``template=chatml`` has it."""
    option = (CONFIG_DIR / "template" / "chatml.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(option)["chat_template"]


def qwen_template() -> str:
    """ChatML with the system prompt that Qwen-1's ``chat`` has where none is given."""
    return _QWEN_SYSTEM + chatml_template()
