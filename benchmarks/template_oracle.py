"""What transformers makes of a row, and what of that a rendered row lacks, for ``templates.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from typing import Any

CONTROL = re.compile(
    r"<[|｜][^<>{}\s'\"]+?[|｜]>|</?s>|<(?:start|end)_of_\w+>|<\|\w+>|<\w+\|>|\[/?[A-Z_]{3,}\]|<eos>|<_end>"
)
_PROBE = "ZQPROBE"
_OPENERS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<seed:think>": "</seed:think>",
    "<|channel>thought": "<channel|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|think|>": "<|end|>",
    "Here are my reasoning steps:": "[BEGIN FINAL RESPONSE]",
}


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
        written = prompt != self.text(index)
        if self.messages[index - 1]["role"] == "assistant":  # some write none after an answer, but its end
            probe = [{"role": "user", "content": _PROBE}]
            asked = Oracle(self.tokenizer, probe, [], self.kwargs)
            written = written and prompt.endswith(asked.text(1, generate=True).rpartition(_PROBE)[2][-8:])
        return prompt, written


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


def best_form(oracle: Oracle) -> Oracle:
    """The same row in the form of which transformers renders most: users would choose it.

    Arguments as mappings or as JSON text, content as text or as parts, an empty content beside calls or none.
    Of words of one letter, which are found in anything, the longest text shows most.
    """
    best, most = oracle, (-99.0, 0)
    for parts, text, null in product((False, True), repeat=3):
        messages = [_in_form(message, parts, text, null) for message in oracle.messages]
        other = Oracle(oracle.tokenizer, messages, oracle.tools, oracle.kwargs)
        if not other.renders():
            continue
        shown = other.text(max([0, *other.answers()]) + 1)
        found = sum(shows(shown, text) for message in oracle.messages for _, text in words_of(message))
        found -= 5 * ("'type': 'text'" in shown or '"type": "text"' in shown)
        found -= 0.5 * ("'city'" in shown or '\\"city' in shown)
        short = all(len(text) == 1 for message in oracle.messages for _, text in words_of(message))
        if (found, len(shown) * short) > most:
            best, most = other, (found, len(shown) * short)
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


def of_span(tokenizer: Any, span: Any) -> list[str]:
    """What is wrong with a labelled part by itself: foreign words, a header, no stop token at its end."""
    row, coded, start, end = span
    text = row.text[start:end]
    found = [f"labels {mark}" for mark in re.findall(r"USR[AB]|SYS[AB]|TOL[A-C]|DESCA|MSKA", text)]
    if not text.endswith(tokenizer.eos_token) and not CONTROL.search(text):
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


def what_is_lost(spans: list[Any], messages: list[Any], tools: list[Any]) -> list[str]:
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
            lost += [f"{message['role']} message {text!r}" for text in texted]
    before = texts.partition("USRA")[0] + texts.partition("USRA")[2]
    names = [tool["function"]["name"] for tool in tools if tool["function"]["description"] not in before]
    return lost + [f"tools {name}" for name in names if f'"{name}"' not in texts.partition("USRA")[0]]


_SAYS = {  # which warnings tell of a loss of which kind
    "words": ("words of an answer", "not trained on"),
    "reasoning": ("reasoning", "not trained on"),
    "name": ("tool calls", "not trained on"),
    "argument": ("tool calls", "arguments", "not trained on"),
    "tools": ("tools left out",),
    "answer": ("tokenised apart",),
    "delimiters": ("the template's own",),
}


def is_said(lost: str, warnings: list[str]) -> bool:
    """Whether a warning tells of just what is lost."""
    kind = lost.split()[0]
    return any(warning.startswith(kind + " message") for warning in warnings) or any(
        words in warning for words in _SAYS.get(kind, ()) for warning in warnings
    )


def of_prompt(oracle: Oracle, index: int, spans: list[Any]) -> tuple[list[str], list[str]]:
    """What differs between an answer as served by transformers and the labelled parts: wrong, and lost."""
    prompt, generates = oracle.served(index)
    fits = [span for span in spans if span[0].text[: span[2]] == prompt]
    if not generates:
        fits = fits or [span for span in spans if span[0].text[: span[2]].startswith(prompt)]
    if not fits:
        at = [span[0].text[: span[2]][-60:] for span in spans]
        said = [text for kind, text in words_of(oracle.messages[index]) if kind != "argument"]
        kept = any(shows(row.text[start:end], text) for row, _, start, end in spans for text in said)
        return ([f"answer {index}: served {prompt[-60:]!r}, trained after {at}"] * kept, [])
    row, coded, start, end = fits[0]
    served = oracle.tokenizer(row.text[:start], add_special_tokens=False)["input_ids"]
    lost = [f"answer {index} shares a token with its prompt"] * (coded.input_ids[: len(served)] != served)
    wrong = list(_of_answer(oracle, index, prompt, row.text[start:end])) if generates else []
    other = _reasoning_in_key(oracle, index) if wrong else None
    if other and not list(_of_answer(other, index, prompt, row.text[start:end])):
        return [], [*lost, f"delimiters of the reasoning of answer {index}"]
    return wrong, lost


def _reasoning_in_key(oracle: Oracle, index: int) -> Oracle | None:
    """The same row with the reasoning of an answer's words in a key of its own, where it has any."""
    message = oracle.messages[index]
    text = message["content"]
    if not isinstance(text, str) or "</think>" not in text:
        return None
    reasoning, _, words = text.partition("</think>")
    thought = reasoning.replace("<think>", "").strip()
    made = {**message, "content": words.strip(), "reasoning_content": thought}
    messages = [*oracle.messages[:index], made, *oracle.messages[index + 1 :]]
    return Oracle(oracle.tokenizer, messages, oracle.tools, oracle.kwargs)


def _of_answer(oracle: Oracle, index: int, prompt: str, span: str) -> Iterator[str]:
    """What differs between a labelled part and what transformers writes of the answer."""
    message, full, end = oracle.messages[index], oracle.text(index + 1), oracle.tokenizer.eos_token
    if full.startswith(prompt):
        rest = full[len(prompt) :]
        if not rest.startswith(span) and not rest.rstrip().startswith(span.removesuffix(end).rstrip()):
            yield f"answer {index}: labelled {span!r}, transformers writes {rest!r}"
        return
    said = span.removesuffix(end).strip()
    opened = next((name for name in _OPENERS if prompt.rstrip().endswith(name)), None)
    words, reasoning = ([t for k, t in words_of(message) if k == kind] for kind in ("words", "reasoning"))
    if opened:
        inner, closed, said = said.partition(_OPENERS[opened])
        if not closed:
            yield f"answer {index}: the reasoning that the prompt opens is not closed: {span[:60]!r}"
        if inner.strip() not in ("", *reasoning):
            yield f"answer {index}: the reasoning is {inner!r}"
        said = said.strip()
    for text in reasoning:  # the prompt may end its block already
        said = said.partition(text)[2].strip() if said.startswith(text) else said
    header = said.partition(words[0])[0].strip() if words and not message.get("tool_calls") else ""
    if said not in full.rstrip() or (header and not (header[0] in "<[" and header[-1] in ">]")):
        yield f"answer {index}: labelled {span!r}, transformers writes {full[-len(span) - 20 :]!r}"
