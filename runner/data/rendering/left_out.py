"""What of a conversation the template leaves out of the text: messages other than the answers, and tools."""

from __future__ import annotations

from collections.abc import Iterator

from runner.data.messages import BadRow, Message
from runner.data.rendering.chat_template import ChatTemplate, Tools
from runner.data.rendering.contents import call_name, contents_of, shows


def left_out(template: ChatTemplate, messages: list[Message], tools: Tools, text: str) -> Iterator[str]:
    """What is not in the text of a row, as reasons to count.

    Words that stand in several messages must stand there as often: a tool's result that the template leaves
    out is often repeated by the answer.
    """
    for message in messages:
        words = message["content"].strip()
        if message["role"] == "assistant" or not words:
            continue
        parts = [message[key].strip() for key in ("instruction", "input") if message.get(key)]
        if message.get("input") and all(shows(text, part) for part in parts):
            continue  # in sections of their own (Alpaca)
        heard = sum(_words(template, other).count(words) for other in messages)
        if not shows(text, words) or (words in text and text.count(words) < heard):
            yield f"{message['role']} message left out by the template"
    names = [call_name(tool) for tool in tools]
    if not all(shows(text, name) for name in names) or (names and _ignored(template, messages, tools, names)):
        yield "tools left out by the template"


def _words(template: ChatTemplate, message: Message) -> str:
    """The words of a message, of an answer without its reasoning, which later turns may not show."""
    if message["role"] != "assistant":
        return message["content"]
    return contents_of(message, template.delimiters).words


def _ignored(template: ChatTemplate, messages: list[Message], tools: Tools, names: list[str]) -> bool:
    """Whether the template writes the same with tools and without, where messages name the tools too."""
    said = [message["content"] for message in messages]
    said += [call_name(call) for message in messages for call in message.get("tool_calls", ())]
    if not any(name in words for name in names for words in said):
        return False
    try:
        return template.apply(messages, tools) == template.apply(messages)
    except BadRow:
        return False
