"""Conversation shapes for ``templates.py``: rows whose every part is a word of its own, easy to find again.

``USR..`` are words of users, ``SYS..`` of system prompts, ``TOL..`` of tool results, ``DESC..`` of tool
schemas; ``ANS..`` are an answer's words, ``THK..`` its reasoning, ``CALL..`` the arguments of its calls.
"""

from __future__ import annotations

from typing import Any

Turn = dict[str, Any]

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "DESCA Weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "city"}},
            "required": ["city"],
        },
    },
}


def user(text: Any = "USRA what?") -> Turn:
    """A question."""
    return {"role": "user", "content": text}


def answer(text: Any = "ANSA it is.", **more: Any) -> Turn:
    """An answer, with calls or reasoning."""
    return {"role": "assistant", "content": text, **more}


def system(text: Any = "SYSA be kind.", role: str = "system") -> Turn:
    """A system prompt."""
    return {"role": role, "content": text}


def call(arguments: Any = None, identifier: str = "abcdefghi") -> dict[str, Any]:
    """A call of the weather tool."""
    arguments = {"city": "CALLPARIS"} if arguments is None else arguments
    return {
        "type": "function",
        "id": identifier,
        "function": {"name": "get_weather", "arguments": arguments},
    }


def result(identifier: str = "abcdefghi", text: str = "TOLA sunny") -> Turn:
    """A tool's result."""
    return {"role": "tool", "content": text, "tool_call_id": identifier, "name": "get_weather"}


def _calling(*calls: dict[str, Any], words: str = "", **more: Any) -> list[Turn]:
    results = [result(one["id"], f"TOL{letter} sunny") for letter, one in zip("ABC", calls, strict=False)]
    asked = answer(words, tool_calls=list(calls), **more)
    return [user("USRA weather?"), asked, *results, answer("ANSZ it is sunny.")]


_ARGUMENTS = {
    "city": "CALLPARIS",
    "deep": {"list": [1, 2.5, True, None], "text": 'CALL"quoted"\n'},
    "unicode": "CALLé中",
}

# name: (messages, tools)
SHAPES: dict[str, tuple[list[Turn], list[Any]]] = {
    "one": ([user(), answer()], []),
    "multi": ([user(), answer(), user("USRB and?"), answer("ANSB more.")], []),
    "system": ([system(), user(), answer()], []),
    "system multi": ([system(), user(), answer(), user("USRB and?"), answer("ANSB more.")], []),
    "system setting": ([user(), answer()], []),
    "parts": (
        [user([{"type": "text", "text": "USRA what?"}]), answer([{"type": "text", "text": "ANSA."}])],
        [],
    ),
    "empty user": ([user(""), answer()], []),
    "reasoning": ([user(), answer(reasoning_content="THKA hmm.")], []),
    "reasoning multi": (
        [
            user(),
            answer(reasoning_content="THKA hmm."),
            user("USRB and?"),
            answer("ANSB more.", reasoning_content="THKB well."),
        ],
        [],
    ),
    "reasoning inline": ([user(), answer("<think>\nTHKA hmm.\n</think>\n\nANSA it is.")], []),
    "tools": (_calling(call()), [_WEATHER]),
    "tools words": (_calling(call(), words="ANSB let me look."), [_WEATHER]),
    "tools system": ([system(), *_calling(call())], [_WEATHER]),
    "tools ends in call": (_calling(call())[:2], [_WEATHER]),
    "tools unused": ([user(), answer()], [_WEATHER]),
    "newline": ([user("USRA what?\n"), answer("ANSA it is.\n")], []),
    "spaces": ([user(" USRA what? "), answer(" ANSA it is. ")], []),
    "unicode": ([user("USRA 你好 🙂 é?"), answer("ANSA 再见 🙃 é.")], []),
    "code": ([user("USRA code?"), answer("ANSA:\n```python\nx = {'a': \"<b>\"}\n```")], []),
    "json": ([user("USRA order?"), answer('{"ANSA": [1, null, "x"]}')], []),
    "two assistants": ([user(), answer(), answer("ANSB and more.")], []),
    "two users": ([user(), user("USRB and?"), answer()], []),
    "assistant first": ([answer("ANSB welcome."), user(), answer()], []),
    "developer": ([system(role="developer"), user(), answer()], []),
    "empty system": ([system(""), user(), answer()], []),
    "system late": ([user(), answer(), system("SYSB now."), user("USRB and?"), answer("ANSB more.")], []),
    "empty answer": ([user(), answer(""), user("USRB and?"), answer("ANSB more.")], []),
    "masked": ([user(), answer("MSKA no.", weight=0), user("USRB and?"), answer("ANSB more.")], []),
    "empty reasoning": ([user(), answer(reasoning_content="")], []),
    "thinking key": ([user(), answer(thinking="THKA hmm.")], []),
    "think words": ([user("USRA what is </think>?"), answer("ANSA it is.")], []),
    "same words": ([user("ANSA it is."), answer()], []),
    "header words": ([user("user"), answer("assistant")], []),
    "one letter": ([user("a"), answer("a")], []),
    "tools text arguments": (_calling(call('{"city": "CALLPARIS"}')), [_WEATHER]),
    "tools deep": (_calling(call(_ARGUMENTS)), [_WEATHER]),
    "tools no arguments": (_calling(call({})), [_WEATHER]),
    "tools parallel": (
        _calling(call(), call({"city": "CALLROME"}, "abcdefghj")),
        [_WEATHER],
    ),
    "tools reasoning": (_calling(call(), reasoning_content="THKA hmm."), [_WEATHER]),
    "tools named in question": (
        [user("USRA get_weather of CALLPARIS?"), *_calling(call())[1:]],
        [_WEATHER],
    ),
    "tools twice": ([*_calling(call()), *_calling(call({"city": "CALLROME"}, "abcdefghj"))], [_WEATHER]),
}
# Those that most data sets have, and that every template should render.
EVERYDAY = (
    *("one", "multi", "system", "system multi", "system setting", "parts", "empty user", "newline", "spaces"),
    *("unicode", "code", "json", "same words"),
)
