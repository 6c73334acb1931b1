"""The facts of a model that decide what its training takes, without its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_NUMBERED = re.compile(r"\.(\d+)\.")
HEAD = "lm_head"


@dataclass(frozen=True)
class Linear:
    """A linear layer: its full name, and its weight of ``outputs`` x ``inputs``."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Numbers in its weight."""
        return self.inputs * self.outputs

    @property
    def layer(self) -> int | None:
        """The number of the decoder layer that it is in."""
        found = _NUMBERED.search(self.name)
        return int(found[1]) if found else None

    @property
    def short(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Architecture:
    """A causal language model, as far as its memory and time depend on it.

    ``linears`` are all linear layers, the output head (``head``) among them; ``embeddings`` the full names of
    embeddings with their rows and width; ``norms`` those of other parameters with their size. A ``tied`` head
    has the embedding's own weight. ``head_dim`` is that of a query head, ``qk_norm`` says that queries and
    keys are normalised. ``sublayer_norms`` says that there are norms behind attention and MLP (Gemma 2), and
    ``layer_norm`` that norms are torch's own, in one operation. ``active`` is the inner width of the
    ``experts`` that a token takes, all together. ``causal`` says that every layer attends to
    all tokens before, ``after_head`` names what the config does to the logits. ``quantization`` is that of
    the checkpoint itself, ``facts`` the whole ``config.json``. ``exact`` is False where the order of a
    layer's operations is not known, so that its activations are estimated by its linear layers.
    """

    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int
    tied: bool
    linears: tuple[Linear, ...]
    embeddings: dict[str, tuple[int, int]]
    norms: dict[str, int]
    head: str = HEAD
    qk_norm: bool = False
    gated: bool = True
    sublayer_norms: bool = False
    layer_norm: bool = False
    experts: bool = False
    active: int = 0
    causal: bool = True
    after_head: tuple[str, ...] = ()
    quantization: dict = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True

    @property
    def parameters(self) -> int:
        """All parameters, as ``model.parameters()`` has them: a tied head counts once."""
        linear = sum(
            (0 if self.tied and each.name == self.head else each.weights) + (each.outputs if each.bias else 0)
            for each in self.linears
        )
        tables = sum(rows * width for rows, width in self.embeddings.values())
        return linear + tables + sum(self.norms.values())

    @property
    def queries(self) -> int:
        """The width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def values(self) -> int:
        """The width of all value heads together."""
        return self.kv_heads * self.head_dim

    @property
    def norms_behind(self) -> bool:
        """Whether there are norms behind attention and MLP (Gemma 2, OLMo 2), by transformers' names."""
        return any(".post_feedforward_layernorm" in name for name in self.norms)

    def in_layers(self) -> Iterator[tuple[int, list[Linear]]]:
        """The linear layers of each decoder layer."""
        found: dict[int, list[Linear]] = {number: [] for number in range(self.layers)}
        for each in self.linears:
            if each.layer in found:
                found[each.layer].append(each)
        yield from found.items()

    def modules(self) -> dict[str, int]:
        """Names of all modules that have parameters, and how many."""
        linear = {each.name: each.weights + (each.outputs if each.bias else 0) for each in self.linears}
        tables = {name: rows * width for name, (rows, width) in self.embeddings.items()}
        norms = {name.removesuffix(".weight").removesuffix(".bias"): 0 for name in self.norms}
        for name, size in self.norms.items():
            norms[name.removesuffix(".weight").removesuffix(".bias")] += size
        return linear | tables | norms
