"""Greedy answers to held-out prompts, and the score by which they are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch

from runner.config.settings import RunConfig
from runner.core.metric_names import find_metric
from runner.core.progress import Progress
from runner.data.formats import Example
from runner.data.messages import BadRow
from runner.data.prepare import Split
from runner.data.template import Renderer
from runner.evaluation.answers import (
    AnswerParser,
    AnswerReader,
    answer_fields,
    answerable,
    question,
    reasoning_notes,
)
from runner.evaluation.metrics import ROW_SCORES, measure
from runner.evaluation.row_loss import cast
from runner.models.model import Precision

_MARGIN = 8  # tokens beyond the longest expected answer: room to end the turn, or to show that it does not


# The most likely token each time; without the last three transformers warns that they have no effect.
GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


class HeldOutGenerator:
    """Answers the same held-out prompts before and after training, and compares the two.

    With ``data.metric`` all held-out rows are answered (or ``generation.rows``), otherwise just the samples.
    """

    def __init__(
        self, config: RunConfig, renderer: Renderer, held_out: Split | None, precision: Precision
    ) -> None:
        self._config, self._renderer = config, renderer
        self._autocast = precision.autocast
        limit = config.generation.rows if config.data.metric else config.generation.samples
        self._examples = list(islice(answerable(held_out, renderer), limit)) if held_out else []
        self._reader = AnswerReader(renderer, self._examples)

    def answer(self, model: Any, label: str, base_only: bool = False) -> list[str]:
        """Greedy answers to the held-out prompts, from the base alone where ``base_only``."""
        if not self._examples:
            return []
        alone = model.disable_adapter() if base_only and hasattr(model, "disable_adapter") else nullcontext()
        with alone:
            return self.answer_pack(model, 1, label)[0]

    def answer_pack(self, model: Any, cells: int, label: str) -> list[list[str]]:
        """Greedy answers of every cell of a pack, whose prompts are concatenated in a batch."""
        if not self._examples:
            return [[] for _ in range(cells)]
        settings = self._config.generation
        with Progress(f"answering, {label}", cells * len(self._examples)) as progress:
            answers = generate(
                model,
                self._renderer,
                self._examples,
                settings.batch_size,
                settings.max_new_tokens,
                self._autocast,
                progress.advance,
                cells=cells,
            )
        count = len(self._examples)
        return [answers[start : start + count] for start in range(0, len(answers), count)]

    def scores(self, before: list[str], after: list[str]) -> dict[str, float]:
        """The metric's score as ``<metric>_before`` and ``<metric>_after``; empty without a metric."""
        name = self._config.data.metric
        if not name or not self._examples:
            return {}
        pairs = (("before", before), ("after", after))
        return {
            f"{name}_{when}": measure(name, self._answers(texts), self._reader.expected).value
            for when, texts in pairs
        }

    def notes(self, before: list[str], after: list[str]) -> list[str]:
        """What is to be said of answers with reasoning."""
        if not self._examples:
            return []
        read = {"before": self._reader.read(before), "after": self._reader.read(after)}
        return reasoning_notes(read, "generation.max_new_tokens", scored=bool(self._config.data.metric))

    def samples(self, before: list[str], after: list[str]) -> list[dict[str, Any]]:
        """The lines of ``samples.jsonl``."""
        if not self._examples:
            return []
        texts = {"before": before, "after": after}
        answers = {when: self._answers(own) for when, own in texts.items()}
        right = {when: self._right(own) for when, own in answers.items()}
        return [
            {"index": index, "prompt": question(example)}
            | answer_fields("expected", example.answer, self._reader.expected[index])
            | answer_fields("before", before[index], answers["before"][index])
            | answer_fields("after", after[index], answers["after"][index])
            | {f"{when}_match": right[when][index] for when in texts}
            for index, example in enumerate(self._examples[: self._config.generation.samples])
        ]

    def _answers(self, texts: list[str]) -> list[str]:
        return [found.answer for found in self._reader.read(texts)]

    def _right(self, answers: list[str]) -> list[bool | None]:
        """Whether each answer is right; None where the metric does not say so of single rows."""
        name = self._config.data.metric
        if name not in ROW_SCORES or not find_metric(name).share:
            return [None] * len(answers)
        pairs = zip(answers, self._reader.expected, strict=True)
        return [bool(ROW_SCORES[name](text, expected)) for text, expected in pairs]


def generate(
    model: Any,
    renderer: Renderer,
    examples: Sequence[Example],
    batch_size: int,
    max_new_tokens: int | None,
    autocast: torch.dtype | None = None,
    on_batch: Callable[[int], None] | None = None,
    drawing: dict[str, Any] | None = None,
    cells: int = 1,
) -> list[str]:
    """Answer the last turn of every example, in batches of similar length; the order is kept.

    The texts are all that the model writes up to its stop token, reasoning with its delimiters included.

    ``drawing`` says how tokens are chosen, as keywords of transformers' ``generate``; greedily by default.
    ``max_new_tokens`` of None allows as many as the longest expected answer has, and a few more.
    ``on_batch`` is called with the number of answers of each finished batch. With a pack of ``cells``
    all examples are answered by each, and the answers of the first come first.
    """
    tokenizer, parser, stops = renderer.tokenizer, AnswerParser(renderer), stop_ids(model, renderer.tokenizer)
    prompts = [
        tokenizer(renderer.prompt(example), add_special_tokens=False)["input_ids"] for example in examples
    ]
    if max_new_tokens is None:
        max_new_tokens = max(_length(parser, example, stops) for example in examples) + _MARGIN
    pad = tokenizer.pad_token_id
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers_by_index: dict[int, str] = {}
    training, in_parts = model.training, getattr(model, "in_parts", False)
    model.eval()
    hook = model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            # tensors of inference mode, as gathered layers would be, take no part in training later
            with (
                torch.no_grad() if in_parts else torch.inference_mode(),
                cast(model.device, autocast),
                _without_router_logits(model),
            ):
                batch = [prompts[index] for index in chosen] * cells
                made = _generate(model, batch, pad, max_new_tokens, stops, drawing or GREEDY)
            texts = [parser.decode(ids, stops) for ids in made]
            places = [cell * len(prompts) + index for cell in range(cells) for index in chosen]
            answers_by_index |= dict(zip(places, texts, strict=True))
            if on_batch:
                on_batch(len(places))
    finally:
        hook.remove()
        model.train(training)
    return [answers_by_index[index] for index in range(cells * len(prompts))]


def _length(parser: AnswerParser, example: Example, stops: list[int]) -> int:
    """Tokens of the expected answer as the template writes it, with its reasoning."""
    try:
        text, _ = parser.rendered(example)
    except BadRow:
        text = example.answer
    ids = parser.tokenizer(text, add_special_tokens=False)["input_ids"]
    return next((index for index, token in enumerate(ids) if token in stops), len(ids))


def _generate(
    model: Any,
    prompts: list[list[int]],
    pad: int,
    max_new_tokens: int,
    stops: list[int],
    drawing: dict[str, Any],
) -> list[list[int]]:
    """What the model writes after each prompt, as token ids with the padding of the batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=stops,
        use_cache=True,
        synced_gpus=getattr(model, "in_parts", False),  # all processes make as many passes
        **drawing,
    )
    return made[:, longest:].tolist()


@contextmanager
def _without_router_logits(model: Any) -> Iterator[None]:
    """TRL's trainers switch them on for models with experts; with a cache, transformers 5.23 then fails on
    their balance, for which it has the mask of all tokens and the choices of the last ones."""
    config = model.config.get_text_config()
    held = getattr(config, "output_router_logits", None)
    if held:
        config.output_router_logits = False
    try:
        yield
    finally:
        if held:
            config.output_router_logits = held


def _contiguous(head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """What a CPU wants: of a slice, such as the last position of each row, torch 2.13 multiplies with a copy
    of the head's weights for every row (300 rows of SmolLM2: 16 GiB and 31 s, else nothing and 0.03 s)."""
    return (inputs[0].contiguous(), *inputs[1:])


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The end token of the run's template, and whatever else the model was made to stop at."""
    own = model.generation_config.eos_token_id
    others = own if isinstance(own, list) else [own] if own is not None else []
    return sorted({tokenizer.eos_token_id, *others})
