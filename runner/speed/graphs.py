"""Forward and backward pass of a decoder as CUDA graphs: recorded once for each shape, then replayed."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import _foreach_add_, _foreach_zero_  # pyright: ignore[reportPrivateImportUsage]

# Token ids [rows, length], and what else the decoder is given with them.
Inputs = tuple[torch.Tensor, ...]
# To hidden states [rows, length, width].
Forward = Callable[..., torch.Tensor]

_KEPT = 48  # graphs; the least used one is dropped for another


class Graphs:
    """The graphs of a decoder over batches of several shapes, which share their memory.

    ``parameters`` are those that are trained; their gradients are added up in tensors that stay where they
    are, and become ``grad`` of each parameter in the backward pass. Only one batch is under way at a time:
    its backward pass comes before the next forward pass. What is recorded while gradients are off is a
    forward pass alone.
    """

    def __init__(self, forward: Forward, parameters: list[torch.nn.Parameter], device: torch.device) -> None:
        self.forward, self.parameters, self.device = forward, parameters, device
        self.stream = torch.cuda.Stream(self.device)
        self.pool: _Pool | None = None
        self.sums: list[torch.Tensor | None] = []
        self.turn = 0  # counts forward passes, to tell the last one's backward pass from another's
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._buffer: torch.Tensor | None = None
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
        if graph.backward_pass is None:
            return graph.hidden(inputs, chosen)
        return _Replay.apply(self._trigger, self, graph, inputs, chosen)

    def buffer(self, like: torch.Tensor) -> torch.Tensor:
        """A tensor that all graphs may write to, of the shape of ``like``."""
        if self._buffer is None or self._buffer.numel() < like.numel():
            self._buffer = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
        return self._buffer[: like.numel()].view(like.shape)

    def forget(self) -> None:
        """Drop all graphs: the memory that they read has changed place, or is needed."""
        self._graphs.clear()
        self.pool, self.sums, self._buffer = None, [], None
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


class _Pool:
    """Memory that graphs share, for as long as one of them is there, or this."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.id = torch.cuda.graph_pool_handle()
        self._stream = stream
        self._first = torch.cuda.CUDAGraph()  # an empty one, since a pool ends with its last graph
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is empty
            with self.recording(self._first):
                pass

    @contextmanager
    def recording(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Work of this block is recorded."""
        # other threads may allocate meanwhile, such as the one that pins the memory of the next batch
        how: dict[str, Any] = {"stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, pool=self.id, **how):
            yield

    @contextmanager
    def used(self) -> Iterator[None]:
        """Work of this block, also that of backward passes, allocates from here."""
        pool: Any = self  # torch reads nothing of a MemPool but its id
        with (
            torch.autograd.set_multithreading_enabled(False),
            torch.cuda.use_mem_pool(pool, self._stream.device),
            torch.cuda.stream(self._stream),
        ):
            yield


class _Graph:
    """Forward and backward pass over one shape, recorded; without gradients the forward pass alone."""

    def __init__(self, owner: Graphs, inputs: Inputs) -> None:
        self.inputs = [each.clone() for each in inputs]
        owner.stream.wait_stream(torch.cuda.current_stream())
        pool = owner.pool = owner.pool or _Pool(owner.stream)
        trains = torch.is_grad_enabled()
        with pool.used(), _no_cached_casts():
            # compiles, and has every library allocate and choose what it cannot while a graph is recorded;
            # in memory of the graphs, which elsewhere would be needed twice
            hidden = owner.forward(*self.inputs)
            shape = hidden.detach()
            if trains:
                self._backward(owner, hidden, torch.zeros_like(shape))
            del hidden
        torch.cuda.synchronize()
        # what the loss looks at, then the gradient that it returns
        self.buffer = owner.buffer(shape)
        del shape
        self.forward_pass = torch.cuda.CUDAGraph()
        self.backward_pass = torch.cuda.CUDAGraph() if trains else None
        with _no_cached_casts():
            with pool.recording(self.forward_pass):
                hidden = owner.forward(*self.inputs)
                self.buffer.copy_(hidden.detach())
            if self.backward_pass is not None:
                with pool.recording(self.backward_pass):
                    self._add(owner, self._backward(owner, hidden, self.buffer))

    def hidden(self, inputs: Inputs, chosen: torch.Tensor) -> torch.Tensor:
        """Replay the forward pass; hidden states [chosen, width] of the ``chosen`` tokens."""
        for place, values in zip(self.inputs, inputs, strict=True):
            place.copy_(values)
        self.forward_pass.replay()
        return self.buffer.flatten(0, 1).index_select(0, chosen)

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
        return graph.hidden(inputs, chosen)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, ...]:
        graphs, graph = ctx.graphs, ctx.graph
        if ctx.turn != graphs.turn:
            raise RuntimeError("another forward pass came before the backward pass of this one")
        (chosen,) = ctx.saved_tensors
        graphs.collect()
        graph.buffer.zero_().flatten(0, 1).index_copy_(0, chosen, gradients[0].to(graph.buffer.dtype))
        graph.backward_pass.replay()
        return None, None, None, None, None
