"""A conversation in the terminal: user turns, and commands that begin with a slash."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from rich.markup import escape

from runner.core import console
from runner.core.atomic import json_line
from runner.core.errors import nearest
from runner.evaluation.chat import Conversation

_BASE = "none"  # what /adapter calls the model without an adapter


class Terminal:
    """Reads turns and commands until the input ends; ``folder`` is where ``/save`` writes."""

    def __init__(self, conversation: Conversation, folder: Path) -> None:
        self._conversation, self._folder = conversation, folder
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "adapter": (
                "/adapter NAME    answer with this one, or none for the base; alone: list them",
                self._adapter,
            ),
            "reset": ("/reset           begin a new conversation", self._reset),
            "system": ("/system TEXT     set the system prompt; alone: show it", self._system),
            "save": ("/save FILE       write the conversation as a row of training data", self._save),
            "help": ("/help            this list", self._help),
            "quit": ("/quit            end, as Ctrl-D does", self._quit),
        }
        self._ended = False

    def run(self) -> None:
        """Talk until ``/quit``, the end of the input or of its reader; Ctrl-C stops an answer only."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() a history and editing)
        if sys.stdin.isatty():
            self._help("")
        with console.answering() as write:
            self._talk(write)
        self._conversation.reset()

    def _talk(self, write: Callable[[str], None]) -> None:
        while not self._ended and not console.out.quiet:
            try:
                text = self._read()
            except EOFError:
                break
            except KeyboardInterrupt:
                console.out.print()
                continue
            if text.startswith("/"):
                self._command(text)
            elif text.strip():
                self._answer(text, write)

    def _read(self) -> str:
        """One turn; a line that ends in a backslash continues in the next."""
        asks = sys.stdin.isatty()
        lines = [input(f"\n{self._conversation.active or 'base'}> " if asks else "")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("... " if asks else ""))
        return "\n".join(lines)

    def _answer(self, text: str, write: Callable[[str], None]) -> None:
        pieces = self._conversation.ask(text)
        if dropped := self._conversation.forget():
            console.warn(f"the oldest {dropped} messages are forgotten: the model has no room for them")
        with contextlib.closing(pieces), contextlib.suppress(KeyboardInterrupt):
            for piece in pieces:
                write(piece)
        write("\n")

    def _command(self, text: str) -> None:
        name, _, rest = text[1:].partition(" ")
        if name in self._commands:
            self._commands[name][1](rest.strip())
        else:
            console.warn(f"there is no /{name}; {nearest(name, self._commands, prefix='/')}")

    def _adapter(self, name: str) -> None:
        conversation = self._conversation
        if not name:
            for known in (*conversation.adapters, _BASE):
                mark = "*" if known == (conversation.active or _BASE) else " "
                console.out.print(f"{mark} {escape(known)}")
        elif name in (*conversation.adapters, _BASE):
            conversation.active = None if name == _BASE else name
        else:
            console.warn(f"there is no adapter {name!r}; {nearest(name, [*conversation.adapters, _BASE])}")

    def _reset(self, _: str) -> None:
        self._conversation.reset()

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = text
        shown = next((m["content"] for m in self._conversation.messages if m["role"] == "system"), "none")
        console.out.print(escape(f"system prompt: {shown}"))

    def _save(self, name: str) -> None:
        if not self._conversation.turns:
            console.warn("the conversation is empty")
            return
        words = shlex.split(name)
        file = Path(words[0]).expanduser() if words else self._folder / "saved.jsonl"
        row = json_line({"messages": self._conversation.messages})
        try:
            with file.open("x", encoding="utf-8") as stream:
                stream.write(row)
        except FileExistsError:
            console.warn(f"{file} is there already; name another: /save FILE")
        except OSError as error:
            console.warn(f"{file} cannot be written: {error.strerror}")
        else:
            console.out.print(escape(f"saved in {file}"))

    def _help(self, _: str) -> None:
        for text, _command in self._commands.values():
            console.out.print(escape(text))

    def _quit(self, _: str) -> None:
        self._ended = True
