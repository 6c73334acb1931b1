"""A model's decoder, set up for training steps: its layers compiled, its attention causal without a mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from runner.speed.cpu_kernels import MATMUL, lora_forwards, replaced
from runner.speed.pieces import Pieces

# Between operations round to bfloat16, as layers that are not compiled do; compiled code would keep float32,
# and a packed cell be three times as far from its solo run as batch layouts are apart
# (tests/packed/test_packed_distance.py).
ROUNDED: dict[str, Any] = {"emulate_precision_casts": True}

# SDPA, for which transformers makes no mask. It would make one while a CUDA graph is recorded, where it
# cannot look whether there is padding; and SDPA takes its slow kernel for any mask.
CAUSAL = "causal_without_mask"
AttentionInterface.register(CAUSAL, sdpa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(CAUSAL, lambda *args, **kwargs: None)

# The fastest first. On an H200, forward and backward pass of 4 x 2048 tokens, 32 heads and 8 for keys, take
# 1.11 ms with cuDNN 9 and 2.15 ms with the flash kernel, which torch 2.11 would take first.
_KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

_SHAPES = 64  # that layers are compiled for; torch gives up after 8


class FastLayers:
    """The decoder layers of a model, compiled, in the blocks of ``on``; elsewhere they are as they were.

    The layers share their code, so that one compilation serves all.
    """

    def __init__(self, model: Any, pieces: Pieces) -> None:
        self._pieces = pieces
        self.layers = decoder_layers(model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._config = base.config.get_text_config()
        self._compiled: list[Any] = []
        self._one_by_one = False
        self.causal = causal_only(model)
        self._on_cpu = pieces.cpu_kernels and next(model.parameters()).device.type == "cpu"
        self._lora = lora_forwards(model) if self._on_cpu else []
        self._adapters: list[Any] = [each for each in model.modules() if isinstance(each, LoraLayer)]
        self._four_bits = pieces.compile and _can_unpack_at_once(model)

    @contextmanager
    def on(self, training: bool, attention: str | None = None) -> Iterator[None]:
        """In ``training`` layers are compiled or have the kernels for a CPU in this block, and where that or
        recording is on no attention mask is made, if the model needs none. ``attention`` names another
        function for it, of rows side by side, whose number of tokens is another in every batch. The pass of a
        reference has the same, for the first rewards to be 0."""
        fast = self._pieces.compile or self._pieces.cuda_graphs or self._on_cpu
        varying = attention is not None
        with ExitStack() as stack:
            if self.causal and training and fast:
                attention = attention or (MATMUL if self._on_cpu else CAUSAL)
                stack.enter_context(sdpa_kernel(_KERNELS, set_priority=True))
            if attention:
                stack.enter_context(patched(self._config, "_attn_implementation_internal", attention))
            if self._on_cpu and training:
                stack.enter_context(replaced(self._lora))
            if self._pieces.compile and training:
                self._compile()
                stack.enter_context(_cast_once(self._adapters))
                if self._four_bits:
                    stack.enter_context(_unpacked_at_once())
                stack.enter_context(_compile_settings(self._pieces.activation_memory_budget))
                for number, (layer, call) in enumerate(zip(self.layers, self._compiled, strict=True)):
                    call = for_any_length(call) if varying else call
                    call = alone(call, number > 0) if self._one_by_one else call
                    stack.enter_context(patched(layer, "forward", call))
                    if getattr(layer, "gradient_checkpointing", False):  # the memory budget is in its place
                        stack.enter_context(patched(layer, "gradient_checkpointing", False))
            yield

    @contextmanager
    def not_compiled(self) -> Iterator[None]:
        """Layers are as they were in this block, but for their attention."""
        with patched(self, "_pieces", dataclasses.replace(self._pieces, compile=False)):
            yield

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """Compiled layers have in this block the code of a pass with gradients, and keep nothing for it."""
        with patched(self, "_one_by_one", True):
            yield

    def mark(self, tokens: int, inputs: Any) -> None:
        """Let compiled layers expect any number of ``tokens`` in ``inputs`` that they find by themselves."""
        if self._pieces.compile:
            mark_tokens(tokens, inputs)

    def _compile(self) -> None:
        if self._compiled:
            return
        # not ``layer.compile``: hooks, such as those that gather weights, stand around compiled code
        self._compiled = [torch.compile(layer.forward, options=ROUNDED) for layer in self.layers]


def for_any_length(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` of a compiled layer on hidden states [rows, tokens, width], compiled for any number of tokens.

    torch would compile it for the first number, and again when there is another: 20 s more (H200).
    """

    def marked(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        mark_tokens(hidden.shape[1], (hidden, args, kwargs))
        return call(hidden, *args, **kwargs)

    return marked


def alone(call: Callable[..., Any], trains: bool) -> Callable[..., Any]:
    """``call`` of a compiled layer as of one that ``trains``, or that stands below all that do, while
    gradients are off: its activations end with it."""

    def run(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            found = call(hidden.detach().requires_grad_(trains), *args, **kwargs)
        return tree_map_only(torch.Tensor, torch.Tensor.detach, found)

    return run


def mark_tokens(tokens: int, inputs: Any) -> None:
    """Let the second dimension vary of each tensor in ``inputs`` whose size there is ``tokens``."""
    for each in tree_leaves(inputs):
        if isinstance(each, torch.Tensor) and each.dim() > 1 and each.shape[1] == tokens:
            torch._dynamo.maybe_mark_dynamic(each, 1)


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The longest list of modules of one class."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    alike = [list(found) for found in lists if len({type(module) for module in found}) == 1]
    return max(alike, key=len, default=[])


def causal_only(model: Any) -> bool:
    """Whether every layer attends to all tokens before, through transformers' choice of attention functions,
    and the choice is SDPA: then rows that are padded on the right need no mask."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        kinds == {"full_attention"}
        and getattr(config, "is_causal", True)
        # an encoder's layers have is_decoder=false in the config, and say here what they made of it
        and all(getattr(module, "is_causal", True) for module in base.get_decoder().modules())
        and not (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))
        and config._attn_implementation == "sdpa"
        and bool(getattr(base, "_supports_attention_backend", False))
    )


@contextmanager
def _compile_settings(budget: float) -> Iterator[None]:
    import torch._dynamo.config
    import torch._functorch.config

    # What is cheap to compute again and large, the inputs of adapters behind a norm or an activation, is not
    # kept: Qwen3-4B over NF4 at 4 x 2048 takes 28.1 GiB so and 36.3 without, for 0.9% of a step (H200).
    again: Any = {"ban_recompute_materialized_backward": False}
    with (
        torch._functorch.config.patch(activation_memory_budget=budget, **again),
        torch._dynamo.config.patch(recompile_limit=_SHAPES),
    ):
        yield


@contextmanager
def _cast_once(adapters: list[Any]) -> Iterator[None]:
    """PEFT casts the input of an adapter in float32 to float32, which autocast casts to bfloat16 again: the
    same numbers, but other tensors than those that the base is multiplied with, which are kept besides (29%
    of what the layers of a Qwen3 keep) and written. In this block autocast alone casts."""
    cast = [each for each in adapters if each.cast_input_dtype_enabled]
    on = bool(cast) and torch.is_autocast_enabled(next(cast[0].parameters()).device.type)
    for each in cast if on else []:
        each.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for each in cast:
            each.cast_input_dtype_enabled = True


def _can_unpack_at_once(model: Any) -> bool:
    """Whether 4-bit layers of a model may have our kernel: with Triton, which compiled layers on CUDA have.

    It was not seen over a base in parts, whose packed weights change their place.
    """
    packed = getattr(model, "is_loaded_in_4bit", False) and not getattr(model, "in_parts", False)
    return bool(packed) and find_spec("triton") is not None


@contextmanager
def _unpacked_at_once() -> Iterator[None]:
    """4-bit layers have our kernel in this block."""
    import bitsandbytes

    from runner.speed import four_bits

    with patched(bitsandbytes, "matmul_4bit", four_bits.matmul_4bit):
        yield


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute that has another value in this block; it may be one of the class."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
