"""Render every chat template of a folder through the runner, and compare with transformers' own rendering.

    python benchmarks/templates.py FOLDER [--details] [--only WORD] [--json FILE]

``FOLDER`` holds ``*.jinja`` files. Each is put on the tokenizer of SmolLM2 with the template's own control
tokens added, and renders every shape of ``template_shapes.py``. A cell is one template with one shape:

right          the text up to an answer is the served prompt (``apply_chat_template`` with the generation
               prompt), token by token; what is labelled is what follows it, up to and including the stop
               token; every word, call, argument and reasoning of a trained answer is in its labelled part;
               nothing else is labelled
warned         something of that is lost, and the runner says so
refused with   the runner refuses the row or drops it, and transformers does too
refused alone  the runner refuses or drops a row that transformers renders
wrong          something is lost or labelled that should not be, without a word
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from template_shapes import EVERYDAY, SHAPES

VERDICTS = ("right", "warned", "refused with", "refused alone", "wrong")
_PROBE = "ZQPROBE"
_CONTROL = re.compile(
    r"<[|｜][^<>{}\s'\"]+?[|｜]>|</?s>|<(?:start|end)_of_\w+>|<\|\w+>|<\w+\|>|\[/?[A-Z_]{3,}\]|<eos>|<_end>"
)
_ADDED = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)  # tokens, but not special, as in Qwen's tokenizers
_ENDS = (  # what stops generation in the families, the surest first
    *(
        "<|END_OF_TURN_TOKEN|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<end_of_turn>",
        "<turn|>",
        "<|return|>",
        "<|eot|>",
    ),
    *("<|end|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<|end_of_turn|>", "<|end_of_text|>"),
    *("<|endoftext|>", "<|assistant_end|>", "<seed:eos>", "[EOS]", "</s>"),
)
_OPENERS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<seed:think>": "</seed:think>",
    "<|channel>thought": "<channel|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|think|>": "<|end|>",
}


def tokenizer_for(base: Any, template: str) -> Any:
    """A copy of a tokenizer with the template, its control tokens, and the token that ends its answers."""
    import copy

    made = copy.deepcopy(base)
    made.chat_template = template
    controls = sorted({"<s>", "</s>", *_CONTROL.findall(template)})
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    made.add_tokens([name for name in _ADDED if name in template])
    made.add_special_tokens({"extra_special_tokens": controls})
    for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
        turns = [{"role": role, "content": content} for role in ("user", "assistant")]
        try:
            text = made.apply_chat_template(turns, tokenize=False)
        except Exception:
            continue
        after = text.rpartition(_PROBE)[2] if text.count(_PROBE) > 1 else ""
        if found := next((end for end in _ENDS if end in after), None):
            made.eos_token = made.pad_token = found
            break
    return made


class Oracle:
    """What transformers makes of a row, without the runner's help."""

    def __init__(self, tokenizer: Any, messages: list[Any], tools: list[Any], kwargs: dict[str, Any]) -> None:
        self.tokenizer, self.messages, self.tools, self.kwargs = tokenizer, messages, tools, kwargs

    def text(self, count: int, generate: bool = False) -> str:
        """The first messages, rendered; raises what the template raises."""
        return self.tokenizer.apply_chat_template(
            self.messages[:count],
            tools=self.tools or None,
            tokenize=False,
            add_generation_prompt=generate,
            **self.kwargs,
        )

    def renders(self) -> bool:
        """Whether transformers renders the row and the prompt of each answer."""
        try:
            for index in self.answers():
                self.text(index + 1)
                if index:
                    self.text(index, generate=True)
        except Exception:
            return False
        return True

    def answers(self) -> list[int]:
        """Indices of the messages that are to be learnt."""
        return [
            index
            for index, message in enumerate(self.messages)
            if message["role"] == "assistant"
            and message.get("weight") != 0
            and (message["content"] or message.get("tool_calls"))
        ]

    def served(self, index: int) -> tuple[str, bool]:
        """The prompt of an answer, and whether the template has a generation prompt at all."""
        if not index:
            return "", False
        prompt = self.text(index, generate=True)
        return prompt, prompt != self.text(index)


def words_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    """Everything that a trained answer says, as (kind, text)."""
    found = []
    content = message["content"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    reasoning = message.get("reasoning_content") or message.get("thinking")
    if "</think>" in (content or ""):
        inner, _, content = content.partition("</think>")
        reasoning = inner.replace("<think>", "")
    found += [("words", content.strip())] if content and content.strip() else []
    found += [("reasoning", reasoning.strip())] if reasoning else []
    for one in message.get("tool_calls", ()):
        found.append(("name", one["function"]["name"]))
        arguments = one["function"]["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        found += [("argument", text) for text in _leaves(arguments)]
    return found


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *_leaves(item))]
    if isinstance(value, list):
        return [text for item in value for text in _leaves(item)]
    return [value if isinstance(value, str) else json.dumps(value)]


def shows(text: str, words: str) -> bool:
    """Whether a text holds some words, as they are or as JSON writes them."""
    plain = {words, json.dumps(words)[1:-1], json.dumps(words, ensure_ascii=False)[1:-1]}
    double = {json.dumps(form, ensure_ascii=False)[1:-1] for form in plain}  # JSON text within JSON
    python = {"null": "None", "true": "True"}.get(words, repr(words)[1:-1])
    return any(form in text for form in plain | double | {python})


def check_cell(renderer: Any, messages: list[Any], tools: list[Any]) -> tuple[str, str]:
    """The verdict of a cell, and why."""
    from runner.core.errors import ConfigError
    from runner.data.formats import to_example
    from runner.data.messages import BadRow

    tokenizer, system = renderer.tokenizer, renderer.settings.system
    said = [{"role": "system", "content": system}, *messages] if system else messages
    said = [message | {"role": "system"} if message["role"] == "developer" else message for message in said]
    oracle = Oracle(tokenizer, said, tools, {})
    renders = oracle.renders()
    try:
        example = to_example({"messages": messages, **({"tools": tools} if tools else {})}, 1, "messages")
        rows = renderer.render(example)
        warnings = renderer.warnings(example, rows)
        encoded = renderer.encode(rows)
    except (BadRow, ConfigError) as error:
        return ("refused alone" if renders else "refused with"), str(error)[:300]
    if not rows:  # dropped and counted
        return ("warned" if renders else "refused with"), "the template writes nothing of its answers"
    oracle = _best_form(oracle)
    warnings += ["tokenised apart"] * any(
        c.apart and len(r.spans) > 1 for r, c in zip(rows, encoded, strict=True)
    )
    spans = [
        (row, coded, start, end) for row, coded in zip(rows, encoded, strict=True) for start, end in row.spans
    ]
    wrong = [
        f"span {number}: {text}" for number, span in enumerate(spans) for text in _of_span(tokenizer, span)
    ]
    lost = _lost(spans, said)
    for index in oracle.answers() if renders or oracle.renders() else ():
        near, found = _of_prompt(oracle, index, spans)
        wrong += near
        lost += found
    if wrong:
        return "wrong", "; ".join(wrong)
    if lost and not warnings:
        return "wrong", "without a word: " + "; ".join(lost)
    return ("warned", f"{'; '.join(lost)}: {warnings}") if lost else ("right", "; ".join(warnings))


def _best_form(oracle: Oracle) -> Oracle:
    """The same row in the form of which transformers renders most: users would choose it.

    Arguments as mappings or as JSON text, content as text or as parts, an empty content beside calls or none.
    """
    best, most = oracle, -99.0
    for parts, text, null in product((False, True), repeat=3):
        messages = [_in_form(message, parts, text, null) for message in oracle.messages]
        other = Oracle(oracle.tokenizer, messages, oracle.tools, oracle.kwargs)
        if not other.renders():
            continue
        count = max([0, *other.answers()]) + 1
        shown = other.text(count)
        found = sum(shows(shown, text) for message in oracle.messages for _, text in words_of(message))
        found -= 5 * ("'type': 'text'" in shown or '"type": "text"' in shown)
        found -= 0.5 * ("'city'" in shown or '\\"city' in shown)
        if found > most:
            best, most = other, found
    return best


def _in_form(message: dict[str, Any], parts: bool, text: bool, null: bool) -> dict[str, Any]:
    made = {key: value for key, value in message.items() if value or key in ("content", "weight")}
    if isinstance(made["content"], list):
        made["content"] = "".join(part["text"] for part in made["content"])
    if parts:
        made["content"] = [{"type": "text", "text": made["content"]}]
    if "tool_calls" in made:
        made["content"] = None if null and not message["content"] else made["content"]
        made["tool_calls"] = [dict(one, function=dict(one["function"])) for one in made["tool_calls"]]
        for one in made["tool_calls"]:
            arguments = one["function"]["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            one["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False) if text else arguments
    return made


def _of_span(tokenizer: Any, span: Any) -> list[str]:
    """What is wrong with a labelled part by itself: foreign words, a header, no stop token at its end."""
    row, coded, start, end = span
    text = row.text[start:end]
    found = [f"labels {mark}" for mark in re.findall(r"USR[AB]|SYS[AB]|TOL[A-C]|DESCA|MSKA", text)]
    if not text.endswith(tokenizer.eos_token) and not _CONTROL.search(text):
        found.append(f"ends without a stop token: {text[-30:]!r}")
    for header in (
        "<|im_start|>",
        "<|START_OF_TURN_TOKEN|>",
        "<|start_header_id|>",
        "<start_of_turn>",
        "[INST]",
    ):
        if header in text:
            found.append(f"labels the header {header}")
    if row.text[end:].strip() and (start, end) == row.spans[-1]:
        found.append("text behind the last answer")
    labelled = [token for token, label in zip(coded.input_ids, coded.labels, strict=True) if label != -100]
    if len(row.spans) == 1 and tokenizer.decode(labelled).strip() != text.strip():
        found.append(f"the labels are {tokenizer.decode(labelled)[:60]!r}")
    return found


def _lost(spans: list[Any], messages: list[Any]) -> list[str]:
    """Words of the row that are nowhere: of trained answers in a labelled part, of the others in the text."""
    labelled = "\n".join(row.text[start:end] for row, _, start, end in spans)
    texts = "\n".join(row.text for row, *_ in spans)
    lost = []
    for message in messages:
        trained = message["role"] == "assistant" and message.get("weight") != 0
        if trained:
            lost += [f"{kind} {text!r}" for kind, text in words_of(message) if not shows(labelled, text)]
        elif message["content"]:
            texted = [text for kind, text in words_of(message) if kind == "words" and not shows(texts, text)]
            lost += [f"{message['role']} {text!r}" for text in texted]
    return lost


def _of_prompt(oracle: Oracle, index: int, spans: list[Any]) -> tuple[list[str], list[str]]:
    """What differs between an answer as served by transformers and the labelled parts: wrong, and lost."""
    prompt, generates = oracle.served(index)
    message, tokenizer = oracle.messages[index], oracle.tokenizer
    if isinstance(message["content"], list):
        message = message | {"content": message["content"][0]["text"]}
    message = message | {"content": message["content"] or ""}
    fits = [span for span in spans if span[0].text[: span[2]] == prompt]
    if not generates:
        fits = fits or [span for span in spans if span[0].text[: span[2]].startswith(prompt)]
    if not fits:
        at = [span[0].text[: span[2]][-60:] for span in spans]
        kept = any(
            shows(row.text[start:end], text) for row, _, start, end in spans for _, text in words_of(message)
        )
        return ([f"answer {index}: served {prompt[-60:]!r}, trained after {at}"], []) if kept else ([], [])
    row, coded, start, end = fits[0]
    span, wrong, lost = row.text[start:end], [], []
    served = tokenizer(row.text[:start], add_special_tokens=False)["input_ids"]
    if coded.input_ids[: len(served)] != served:
        lost.append(f"answer {index} shares a token with its prompt")
    full = oracle.text(index + 1)
    opened = next((name for name in _OPENERS if prompt.rstrip().endswith(name)), None)
    if opened:
        closed = span.find(_OPENERS[opened])
        words = [text for kind, text in words_of(message) if kind == "words"]
        if closed < 0 or (words and 0 <= span.rfind(words[0]) < closed):
            wrong.append(f"answer {index}: the reasoning that the prompt opens is not closed: {span[:60]!r}")
    elif full.startswith(prompt) and generates:
        rest = full[len(prompt) :]
        if not rest.startswith(span) and not rest.rstrip().startswith(
            span.removesuffix(tokenizer.eos_token).rstrip()
        ):
            wrong.append(f"answer {index}: labelled {span!r}, transformers writes {rest!r}")
    return wrong, lost


def main() -> None:
    """Print the table of a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--details", action="store_true", help="say why, of each cell that is not right")
    parser.add_argument("--only", default="", help="only templates with this in their name")
    parser.add_argument("--shape", default="", help="only shapes with this in their name")
    parser.add_argument("--json", type=Path, help="write all verdicts to this file")
    chosen = parser.parse_args()
    files = sorted(file for file in chosen.folder.glob("*.jinja") if chosen.only in file.name)
    if not files:
        parser.error(f"{chosen.folder} holds no {chosen.only}*.jinja")
    from runner.config.settings import TemplateSettings
    from runner.data.template import Renderer

    base = _base_tokenizer()
    cells: dict[str, dict[str, tuple[str, str]]] = {}
    for file in files:
        tokenizer = tokenizer_for(base, file.read_text(encoding="utf-8"))
        renderers = [Renderer(tokenizer, TemplateSettings(system=system)) for system in (None, "SYSC brief.")]
        cells[file.stem] = {
            shape: check_cell(renderers[shape == "system setting"], *SHAPES[shape])
            for shape in SHAPES
            if chosen.shape in shape
        }
        if chosen.details:
            for shape, (verdict, why) in cells[file.stem].items():
                if verdict != "right":
                    sys.stdout.write(f"{file.stem} | {shape} | {verdict} | {why}\n")
    if chosen.json:
        chosen.json.write_text(json.dumps(cells, indent=1, ensure_ascii=False))
    _print(cells)


def _base_tokenizer() -> Any:
    from common import compose

    from runner.models.model import find_base

    return find_base(compose([]).model).tokenizer


def _print(cells: dict[str, dict[str, tuple[str, str]]]) -> None:
    lines = [f"{'shape':<26}" + "".join(f"{verdict:>15}" for verdict in VERDICTS)]
    total: Counter[str] = Counter()
    for shape in SHAPES:
        counts = Counter(found[shape][0] for found in cells.values() if shape in found)
        total += counts
        lines.append(f"{shape:<26}" + "".join(f"{counts[verdict]:>15}" for verdict in VERDICTS))
    lines.append(f"{'all':<26}" + "".join(f"{total[verdict]:>15}" for verdict in VERDICTS))
    good = sum(
        all(found[shape][0] in ("right", "refused with") for shape in EVERYDAY if shape in found)
        for found in cells.values()
    )
    silent = sum(any(verdict == "wrong" for verdict, _ in found.values()) for found in cells.values())
    lines.append(f"{good} of {len(cells)} templates: all everyday shapes right, or refused with transformers")
    lines.append(f"{silent} of {len(cells)} templates: a shape that is wrong without a word")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
