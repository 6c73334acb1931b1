"""A model in training, whose library looks through all its modules several times a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def short_walks(model: Any) -> Iterator[None]:
    """In this block, ``train``, ``parameters`` and ``zero_grad`` of a model do not look for what they found
    before: its parameters stay the same ones, and its modules are switched between training and evaluation
    all together.

    Of Qwen3-0.6B with LoRA, 2,389 modules, these walks took 15 ms a step, as long as its 512 tokens on an
    H200.
    """
    whole = type(model)
    found, walked = list(whole.parameters(model)), False

    def train(mode: bool = True) -> Any:
        nonlocal walked
        if not (mode and walked and model.training):
            whole.train(model, mode)
        walked = True
        return model

    def parameters(recurse: bool = True) -> Iterator[Any]:
        return iter(found) if recurse else whole.parameters(model, recurse=False)

    def zero_grad(set_to_none: bool = True) -> None:
        for parameter in found if set_to_none else ():
            parameter.grad = None
        if not set_to_none:
            whole.zero_grad(model, set_to_none=False)

    short = {"train": train, "parameters": parameters, "zero_grad": zero_grad}
    vars(model).update(short)
    try:
        yield
    finally:
        for name in short:
            del vars(model)[name]
