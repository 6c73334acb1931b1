"""What a decoder keeps of a batch until its backward pass, in bytes a token.

Derived from what autograd saves, layer by layer, and tested against it (``tests/plan/test_activations.py``
lists the tensors of tiny models with ``torch.autograd.graph.saved_tensors_hooks``). The letters: h the hidden
size, q the width of all query heads, v that of all value heads, f the MLP's, r a rank; p bytes of a number in
products, s of one in the residual stream.

Eager layers keep what each operation of PyTorch and of transformers' modules needs:

- a norm its input in float32 (4h), and what it multiplies with a weight that is trained (s h);
- norms of queries and keys 4 (q + v), as they compute in float32;
- attention (SDPA) queries, keys, values and its result, p (2q + 2v), and the log-sum of each head in float32;
- a gated MLP the gate, its activation and the other factor, 3 p f;
- the input of a linear layer that is trained, or has an adapter: once where layers share it; one of its own
  for each adapter in float32 under autocast (it is cast for each), or with dropout (besides a mask of bytes);
- of each adapter its low-rank product, p r.

Of these ``speed.cpu_kernels`` keep less: an adapter and its layer are one operation, which keeps the layer's
own input, that layers share; but up to 256 tokens attention by products of matrices keeps, beside its result,
the copy of it in the order that the next layer reads, and of short rows the shares of each key in float32.

Compiled layers keep what the min-cut partitioner of AOTAutograd chooses with the settings of
``runner.speed.layers`` (the same in torch 2.11 and 2.13): the input of the layer and that of the MLP (s h and
p h), or where a norm is behind attention and MLP what it normalises (p h each); queries and keys before
their norms and after rotation, values, the result of attention, gate and factor of the MLP, low-rank
products. Inputs of adapters are computed again from these, but for two kinds: those of the first layer, to
whose own input no gradient goes, and those with dropout.

``torch._functorch.partitioners.choose_saved_values_set`` with a budget b < 1 keeps the layer's input and, of
the rest, the share b (a knapsack of whole tensors, so up to b).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runner.plan.architecture import Architecture, Linear
from runner.plan.step import Step
from runner.plan.trained import Trained

# Of runner.speed.cpu_kernels: the tokens of a row up to which attention is products of matrices, and the
# shares (numbers of a call) that it keeps.
BY_PRODUCTS, SHARES_KEPT = 256, 2**21

_QKV = ("q_proj", "k_proj", "v_proj", "qkv_proj")
_MLP = ("gate_proj", "up_proj", "gate_up_proj")


@dataclass(frozen=True)
class Kept:
    """What is kept of a batch: bytes a token in all layers together, bytes whatever the tokens, and the most
    that one layer takes a token while it is computed (again); ``made`` are the bytes a token of what could be
    kept, and is handed from kernel to kernel in any case."""

    token: float
    fixed: float
    layer: float
    made: float


def kept(
    architecture: Architecture, trained: Trained, step: Step, padded: bool = False, length: int = 0
) -> Kept:
    """What the decoder keeps for its backward pass.

    ``length`` are the tokens of a row, which matter to ``speed.cpu_kernels`` only. ``padded`` says that rows
    have uneven lengths and attention a mask, for which keys and values are repeated for every query head
    where layers are not compiled.
    """
    compiled = step.pieces.compile
    budget = step.pieces.activation_memory_budget if compiled else 0.0 if step.checkpointing else 1.0
    stream = step.weight * architecture.hidden
    token = fixed = most = made = 0.0
    for number, linears in architecture.in_layers():
        layer = _Layer(architecture, linears, trained, step, first=number == 0 and not trained.whole)
        full = sum(layer.compiled(layer.inputs_kept) if compiled else layer.eager(padded, length))
        most = max(most, full)
        made += sum(layer.compiled(True)) if compiled else full
        if budget < 1:
            least = stream
            again = sum(layer.compiled(bool(trained.dropout))) if compiled else least
            full = least + min(budget * max(0.0, full - least), max(0.0, again - least))
        token += full
        fixed += 0.0 if compiled or step.checkpointing else layer.casts()
    final = max(4, step.weight) * architecture.hidden + 4
    final += step.weight * architecture.hidden if trained.whole else 0
    return Kept(token + final, fixed, most, made + final)


@dataclass(frozen=True)
class _Layer:
    architecture: Architecture
    linears: list[Linear]
    trained: Trained
    step: Step
    first: bool  # nothing before it is trained: its input needs no gradient

    def eager(self, padded: bool, length: int = 0) -> Iterator[float]:
        """Bytes a token that an eager layer keeps, part by part."""
        a, p, s = self.architecture, self.step.product, self.step.weight
        h, q, v = a.hidden, a.queries, a.values
        norms = (4 if a.sublayer_norms else 2) - self.first
        yield norms * (max(4, s) * h + 4)
        if self.trained.whole and a.norms:
            yield norms * s * h
        if a.qk_norm:
            yield 4 * (q + v) + 4 * (a.heads + a.kv_heads)
            yield p * (q + v) if self.trained.whole else 0
        yield p * (2 * q + (2 * q if padded and a.kv_heads < a.heads else 2 * v)) + 4 * a.heads
        if any(each.short == "qkv_proj" for each in self.linears):
            yield p * (q + v)  # the values are a view of all three
        if self.step.pieces.cpu_kernels and 0 < length <= BY_PRODUCTS:
            yield p * q
            yield 4 * a.heads * length if a.heads * length**2 <= SHARES_KEPT else 0  # of a row in its batch
        yield self._mlp(3 if a.gated else 1)
        yield from self._inputs(eager=True)
        yield self._low()

    @property
    def inputs_kept(self) -> bool:
        """Whether a compiled layer keeps the inputs of its adapters."""
        return bool(self.trained.dropout)

    def compiled(self, inputs: bool) -> Iterator[float]:
        """Bytes a token that a compiled layer keeps, part by part; ``inputs`` says that it keeps those of
        adapters."""
        a, p, s = self.architecture, self.step.product, self.step.weight
        h, q, v = a.hidden, a.queries, a.values
        yield 0 if self.first else s * h
        yield 2 * p * h + 16 if a.norms_behind else min(s, p) * h + 8
        if a.qk_norm:
            yield p * (q + v) + 4 * (a.heads + a.kv_heads)
        yield p * (2 * q + 2 * v) + 4 * a.heads
        if any(each.short == "qkv_proj" for each in self.linears):
            yield p * (q + v)  # the values are a view of all three
        yield self._mlp(2 if a.gated else 1)
        if inputs and not self.trained.whole:
            yield from self._inputs(eager=False)
        elif self.first and any(each.short in _QKV for each in self._adapted()):
            yield p * h
        yield self._low()

    def casts(self) -> float:
        """Bytes of the weights that autocast has cast, which autograd keeps, too."""
        p = self.step.product
        if self.trained.whole:
            return p * sum(each.weights for each in self.linears) if self.step.weight > p else 0
        ranks = self.trained.ranks
        adapters = sum(ranks.get(each.name, 0) * (each.inputs + each.outputs) for each in self.linears)
        return p * adapters * self.step.cells if self.step.trained > p else 0

    def _mlp(self, tensors: int) -> float:
        if self.architecture.exact:
            return tensors * self.step.product * self.architecture.intermediate
        # of an order that is not known: the results of all layers but the attention's
        inside = sum(each.outputs for each in self.linears)
        attention = self.architecture.queries + 2 * self.architecture.values
        inner = max(inside - attention, 0 if self.architecture.experts else self.architecture.intermediate)
        return self.step.product * (tensors / 2 * inner + (tensors + 1) * self.architecture.active)

    def _inputs(self, eager: bool) -> Iterator[float]:
        """Bytes a token of the inputs that trained linear layers and adapters keep."""
        p, dropout = self.step.product, self.trained.dropout
        adapted = self._adapted()
        chosen = self.linears if self.trained.whole else adapted
        casts = eager and (self.step.trained > p or (self.trained.whole and self.step.weight > p))
        if self.step.pieces.cpu_kernels and self.step.cells == 1 and not (dropout or self.trained.whole):
            casts = False  # a pack has layers of its own
        for group in self._sharing(chosen):
            short = group[0].short
            own = dropout or (casts and not (self.trained.whole and short in ("o_proj", "down_proj")))
            shared = short == "o_proj" and not own and eager  # SDPA's own result
            yield 0 if shared else p * sum(each.inputs for each in (group if own else group[:1]))
            if dropout:
                yield sum(each.inputs for each in group)
        if self.trained.dora:
            yield sum(2 * p * each.outputs for each in adapted)

    def _adapted(self) -> list[Linear]:
        return [each for each in self.linears if each.name in self.trained.ranks]

    @staticmethod
    def _sharing(linears: list[Linear]) -> Iterator[list[Linear]]:
        """The layers that read the same tensor, together."""
        groups: dict[object, list[Linear]] = {}
        for each in linears:
            key = next((names for names in (_QKV, _MLP) if each.short in names), each.name)
            groups.setdefault(key, []).append(each)
        yield from groups.values()

    def _low(self) -> float:
        return self.step.product * sum(self.trained.ranks.get(each.name, 0) for each in self.linears)
