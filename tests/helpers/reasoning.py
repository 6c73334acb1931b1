"""Small templates that write reasoning as public ones do."""

from runner.config.settings import TemplateSettings
from runner.data.template import Renderer
from runner.models.model import byte_tokenizer

_TURNS = """{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}ANSWER{% else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
PROMPT{% endif %}"""
_KEPT = "{% if loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}"
_OPENED = (
    "{% if loop.last %}<think>\n{{ m.reasoning_content or '' }}</think>\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}"
)


def _template(answer: str, prompt: str = "") -> str:
    return _TURNS.replace("ANSWER", answer).replace("PROMPT", prompt)


QWEN = _template(_KEPT)  # an empty block before every answer without reasoning
OPENS = _template(_OPENED, "<think>\n")  # the generation prompt begins the block, as for DeepSeek-R1
PLAIN = _template("{{ m.content }}")  # reads no reasoning
MARKS = _template("{% if m.thinking %}[THINK]{{ m.thinking }}[/THINK]{% endif %}{{ m.content }}")
RESPONSE = _template(
    "{% if m.reasoning_content %}<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>{% endif %}"
    "<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>"
)
CHANNELS = """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- if m.thinking and loop.last -%}
<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif -%}
<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|im_end|>
{%- else -%}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{%- endif -%}
{%- endfor -%}{% if add_generation_prompt %}<|start|>assistant{% endif %}"""

SPECIALS = {
    MARKS: ["[THINK]", "[/THINK]"],
    RESPONSE: ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"],
    CHANNELS: ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"],
}

ANALYSIS = "<|channel|>analysis<|message|>2 + 2.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>4"


def renderer(template: str) -> Renderer:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    if template in SPECIALS:
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[template]})
    return Renderer(tokenizer, TemplateSettings())
