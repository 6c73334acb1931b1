"""A conversation with a model: its turns, which adapter answers, and an answer as it is being written."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from runner.config.settings import ChatSettings
from runner.data.formats import Example
from runner.data.messages import Message
from runner.data.template import Renderer
from runner.evaluation.answers import AnswerParser
from runner.evaluation.generate import GREEDY, stop_ids
from runner.evaluation.row_loss import cast
from runner.models.adapter import using


class Conversation:
    """Turns with one model; ``adapters`` are the names that it has, ``active`` the one that answers, or None.

    The prompt of every turn is what the renderer serves in training, so that template, system prompt and stop
    tokens are the same.
    """

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        settings: ChatSettings,
        adapters: list[str],
        autocast: torch.dtype | None,
    ) -> None:
        self._model, self._renderer, self._settings, self._autocast = model, renderer, settings, autocast
        self._parser = AnswerParser(renderer)
        self.adapters = adapters
        self.active: str | None = adapters[0] if adapters else None
        self.system: str | None = None
        self.turns: list[Message] = []
        self.finished: list[list[Message]] = []

    @property
    def messages(self) -> list[Message]:
        """The conversation as a row of training data holds it."""
        system = self.system or self._renderer.settings.system
        return [*([{"role": "system", "content": system}] if system else []), *self.turns]

    def reset(self) -> None:
        """Begin a new conversation; the one before is kept in ``finished``."""
        if self.turns:
            self.finished.append(self.messages)
        self.turns = []

    def ask(self, text: str) -> Generator[str, None, None]:
        """Answer one more turn, piece by piece. A consumer that stops early keeps the pieces so far.

        Reasoning is among the pieces; for the next turns it is kept as the template expects it.
        """
        self.turns.append({"role": "user", "content": text})
        prompt, pieces = self._prompt(), list[str]()
        try:
            for piece in self._stream(self._ids(prompt)):
                pieces.append(piece)
                yield piece
        finally:
            self.turns.append(self._parser.message("".join(pieces), prompt))

    def prompt_ids(self) -> list[int]:
        """Token ids that the model is given for the next answer."""
        return self._ids(self._prompt())

    def _prompt(self) -> str:
        pending = ({"role": "assistant", "content": ""},)
        return self._renderer.prompt(Example(0, messages=(*self.messages, *pending)))

    def _ids(self, text: str) -> list[int]:
        return self._renderer.tokenizer(text, add_special_tokens=False)["input_ids"]

    def forget(self) -> int:
        """Drop the oldest turns until a full answer fits the model's positions; return how many went."""
        room = getattr(self._model.config, "max_position_embeddings", None)
        dropped = 0
        while room and len(self.turns) > 2 and len(self.prompt_ids()) + self._settings.max_new_tokens > room:
            del self.turns[:2]
            dropped += 2
        return dropped

    def _stream(self, prompt: list[int]) -> Iterator[str]:
        tokenizer, settings = self._renderer.tokenizer, self._settings
        streamer: Any = _Streamer(tokenizer, self._parser.dropped_ids)
        stop, failures = _Stop(), []
        ids = torch.tensor([prompt], device=self._model.device)

        def work() -> None:
            try:
                device = self._model.device
                with torch.inference_mode(), cast(device, self._autocast), using(self._model, self.active):
                    self._model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=settings.max_new_tokens,
                        pad_token_id=tokenizer.pad_token_id,
                        eos_token_id=stop_ids(self._model, tokenizer),
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([stop]),
                        **drawing(settings),
                    )
            except Exception as error:  # raised again where the answer is read
                failures.append(error)
                streamer.end()

        writer = threading.Thread(target=work, daemon=True)
        writer.start()
        try:
            yield from streamer
        finally:
            stop.requested = True
            writer.join()
        if failures:
            raise failures[0]


def drawing(settings: ChatSettings) -> dict[str, Any]:
    """How tokens are chosen, as keywords of transformers' ``generate``."""
    names = ("do_sample", "temperature", "top_p", "top_k")
    chosen = {name: getattr(settings, name) for name in names} if settings.do_sample else GREEDY
    return chosen | {"repetition_penalty": settings.repetition_penalty}


class _Streamer(TextIteratorStreamer):
    """Text as it is generated, without special tokens but for those that delimit reasoning.

    ``skip_special_tokens`` would leave out those too, and show gpt-oss's reasoning as part of its answer.
    """

    def __init__(self, tokenizer: Any, dropped: set[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self._dropped = torch.tensor(sorted(dropped))

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which is skipped, or the next tokens of the only sequence."""
        if not self.next_tokens_are_prompt:
            value = value[~torch.isin(value, self._dropped.to(value.device))]
            if not len(value):
                return
        super().put(value)


class _Stop(StoppingCriteria):
    """Ends an answer at the next token once ``requested``."""

    requested = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.requested, device=input_ids.device, dtype=torch.bool)
