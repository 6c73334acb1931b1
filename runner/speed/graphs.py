"""Forward and backward pass of a decoder as CUDA graphs: recorded once for each shape, then replayed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import _foreach_add_, _foreach_zero_  # pyright: ignore[reportPrivateImportUsage]

# Token ids [rows, length], and what else the decoder is given with them.
Inputs = tuple[torch.Tensor, ...]
# To hidden states [rows, length, width].
Forward = Callable[..., torch.Tensor]

_KEPT = 48  # graphs; the least used one is dropped for another


class Graphs:
    """The graphs of a decoder over batches of several shapes, which share one memory pool.

    ``parameters`` are those that are trained; their gradients are added up in tensors that stay where they
    are, and become ``grad`` of each parameter in the backward pass. Only one batch is under way at a time:
    its backward pass comes before the next forward pass.
    """

    def __init__(self, forward: Forward, parameters: list[torch.nn.Parameter]) -> None:
        self.forward, self.parameters = forward, parameters
        self.device = parameters[0].device
        self.stream = torch.cuda.Stream(self.device)
        self.pool: Any = None
        self.sums: list[torch.Tensor | None] = []
        self.turn = 0  # counts forward passes, to tell the last one's backward pass from another's
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._places: list[int] = []
        # what autograd sees as the input of every replay: it leads to the backward pass
        self._trigger = torch.zeros((), device=self.device, requires_grad=True)

    def record(self, inputs: Inputs, key: Hashable = None) -> _Graph:
        """The graph for batches of the shapes of ``inputs``, recorded if there is none yet.

        ``key`` stands for whatever else the forward pass depends on, beside the values of its tensors.
        Raises ``RuntimeError`` where the model does what cannot be recorded; nothing has changed then.
        """
        if any(
            parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
            for parameter in self.parameters
        ):  # such as those of layer-wise optimizers, which would wait for gradients that come in another way
            raise RuntimeError("hooks on the gradients of single parameters")
        return self._find((*(each.shape for each in inputs), key), inputs)

    def replay(self, graph: _Graph, inputs: Inputs, chosen: torch.Tensor) -> torch.Tensor:
        """Hidden states [chosen, width] of the ``chosen`` tokens, as indices into all."""
        return _Replay.apply(self._trigger, self, graph, inputs, chosen)

    def forget(self) -> None:
        """Drop all graphs: the memory that they read has changed place, or is needed."""
        self._graphs.clear()
        self.pool, self.sums = None, []
        torch.cuda.empty_cache()

    def _find(self, key: Hashable, inputs: Inputs) -> _Graph:
        places = [parameter.data_ptr() for parameter in self.parameters]
        if places != self._places:
            self.forget()
            self._places = places
        if key not in self._graphs:
            try:
                found = _Graph(self, inputs)
            except torch.OutOfMemoryError:
                if not self._graphs:
                    raise
                self.forget()
                found = _Graph(self, inputs)
            self._graphs[key] = found
            if len(self._graphs) > _KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def collect(self) -> None:
        """Make the sums the gradients of the parameters; those that have none yet begin at zero."""
        fresh = [
            (parameter, total)
            for parameter, total in zip(self.parameters, self.sums, strict=True)
            if total is not None and parameter.grad is not total
        ]
        if not fresh:
            return
        _foreach_zero_([total for _, total in fresh])
        for parameter, total in fresh:
            if parameter.grad is not None:  # of a pass that was not replayed
                total += parameter.grad
            parameter.grad = total


class _Graph:
    """Forward and backward pass over one shape, recorded."""

    def __init__(self, owner: Graphs, inputs: Inputs) -> None:
        self.inputs = [each.clone() for each in inputs]
        stream = owner.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _no_cached_casts():
            # compiles, and has every library allocate and choose what it cannot while a graph is recorded
            hidden = owner.forward(*self.inputs)
            self._backward(owner, hidden, torch.zeros_like(hidden))
            del hidden
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph has memory of its own for the same
        self.forward_pass, self.backward_pass = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # other threads may allocate meanwhile, such as the one that pins the memory of the next batch
        how: dict[str, Any] = {"stream": stream, "capture_error_mode": "thread_local"}
        with _no_cached_casts():
            with torch.cuda.graph(self.forward_pass, pool=owner.pool, **how):
                hidden = owner.forward(*self.inputs)
            owner.pool = owner.pool or self.forward_pass.pool()
            gradient = torch.zeros_like(hidden)
            with torch.cuda.graph(self.backward_pass, pool=owner.pool, **how):
                self._add(owner, self._backward(owner, hidden, gradient))
        self.hidden, self.gradient = hidden.detach(), gradient

    @staticmethod
    def _backward(
        owner: Graphs, hidden: torch.Tensor, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        found = torch.autograd.grad(hidden, owner.parameters, gradient, allow_unused=True)
        if not owner.sums:
            owner.sums = [
                None if each is None else torch.zeros_like(parameter)
                for each, parameter in zip(found, owner.parameters, strict=True)
            ]
        return found

    @staticmethod
    def _add(owner: Graphs, found: tuple[torch.Tensor | None, ...]) -> None:
        pairs = [
            (total, each)
            for total, each in zip(owner.sums, found, strict=True)
            if total is not None and each is not None
        ]
        _foreach_add_([total for total, _ in pairs], [each for _, each in pairs])


class _no_cached_casts(torch.autocast):
    """The autocast that is on, which keeps no cast weight: a graph would read it where it was."""

    def __init__(self) -> None:
        on = torch.is_autocast_enabled("cuda")
        torch.clear_autocast_cache()
        super().__init__("cuda", torch.get_autocast_dtype("cuda"), on, cache_enabled=False)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        trigger: torch.Tensor,
        graphs: Graphs,
        graph: _Graph,
        inputs: Inputs,
        chosen: torch.Tensor,
    ) -> torch.Tensor:
        graphs.turn += 1
        ctx.graphs, ctx.graph, ctx.turn = graphs, graph, graphs.turn
        ctx.save_for_backward(chosen)
        for place, values in zip(graph.inputs, inputs, strict=True):
            place.copy_(values)
        graph.forward_pass.replay()
        return graph.hidden.flatten(0, 1).index_select(0, chosen)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, ...]:
        graphs, graph = ctx.graphs, ctx.graph
        if ctx.turn != graphs.turn:
            raise RuntimeError("another forward pass came before the backward pass of this one")
        (chosen,) = ctx.saved_tensors
        graphs.collect()
        graph.gradient.zero_()
        graph.gradient.flatten(0, 1).index_copy_(0, chosen, gradients[0].to(graph.gradient.dtype))
        graph.backward_pass.replay()
        return None, None, None, None, None
