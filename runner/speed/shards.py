"""A frozen base in parts, one for each process of a run, of which a layer is whole while it is computed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, fix_4bit_weight_quant_state_from_module
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from runner.config.settings import ParallelSettings
from runner.core.errors import ConfigError, Issue, RunnerError
from runner.parallel.group import Group
from runner.speed.layers import decoder_layers


def in_parts(settings: ParallelSettings, group: Group) -> bool:
    """Whether each process of a run keeps a part of the base."""
    return settings.engine == "fsdp2" and group.count > 1


def shard(model: Any, settings: ParallelSettings, group: Group) -> None:
    """Bring a model from the host to the device of this process, which gets its part of the frozen weights of
    layers, through torch's ``fully_shard``, and has them whole one at a time.

    Weights that are trained stay whole in every process, as under ddp, so that gradients, optimizer and
    checkpoints are the same; so does the head, which a loss in parts reads many times. Embeddings that are
    not tied to it stay on the host, where their rows are looked up. bitsandbytes' weights are sharded as the
    packed bytes that they are: their layers know the scales, and put the two together before they compute.
    Raises ``ConfigError`` for a model without a list of layers of one class, ``RunnerError`` where a layer
    does not come back as it was.
    """
    decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (group.count,))
    layers = decoder_layers(model)
    if not layers:
        message = f"the layers of {type(decoder).__name__} are of several classes, and none would be in parts"
        raise ConfigError(Issue("parallel=fsdp2", message, "parallel=ddp"))
    _keep_embeddings_on_host(model, torch.device(mesh.device_type))
    for layer in layers:
        _store_as_floats(layer)
    first: Any = layers[0]
    before = _frozen_bytes(first)
    for layer in layers:
        trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        fully_shard(
            layer, mesh=mesh, reshard_after_forward=settings.reshard_after_forward, ignored_params=trained
        )
        packed = [module for module in layer.modules() if isinstance(module, Linear4bit)]
        layer.register_forward_pre_hook(partial(_with_scales, packed))  # behind the one that gathers
    inside = {parameter for layer in layers for parameter in layer.parameters()}  # which are others now
    # the root, in whose passes the layers' gathers overlap with what is computed
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - inside)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.device.type != mesh.device_type:  # all that is whole
            tensor.data = tensor.to(mesh.device_type)
    model.in_parts = True  # which ``runner.evaluation.generate`` asks
    first.unshard()
    if not all(map(torch.equal, before, _frozen_bytes(first))):
        raise RunnerError("a layer that is put together from its parts is not the one that was loaded")
    first.reshard()


class _HostEmbedding(torch.nn.Module):
    """Embeddings whose table stays in the memory of the host; what is looked up goes to ``device``.

    Gathered from parts, the table would be a device's peak, as it is there twice when it is copied out: of
    Qwen3-8B 2.3 GiB, where all layers in 4 bits are 3.4.
    """

    def __init__(self, table: torch.nn.Embedding, device: torch.device) -> None:
        super().__init__()
        self._table = [table]  # in a list, so that nothing moves it with the model
        # libraries take a model's first parameter for its device and its dtype
        nothing = torch.empty(0, dtype=table.weight.dtype, device=device)
        self.stand_in = torch.nn.Parameter(nothing, requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """The table [tokens, width], on the host."""
        return self._table[0].weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The embeddings [..., width] of ``input_ids`` [...]."""
        return self._table[0](input_ids.cpu()).to(self.stand_in.device)


def _keep_embeddings_on_host(model: Any, device: torch.device) -> None:
    """Those of tokens, if they are frozen, plain, and nobody else's, such as the head's.

    Gemma 4 with embeddings of its own for each layer reads the table beside looking rows up.
    """
    table = model.get_input_embeddings()
    if not isinstance(table, torch.nn.Embedding) or table.weight.requires_grad:
        return
    owners = [each for _, each in model.named_parameters(remove_duplicate=False) if each is table.weight]
    if len(owners) == 1 and not getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0):
        model.set_input_embeddings(_HostEmbedding(table, device))


def _with_scales(packed: Sequence[Linear4bit], *_: Any) -> None:
    """Give packed weights their scales, as bitsandbytes' layers would when they compute: compiled code looks
    for the scales there."""
    for module in packed:
        fix_4bit_weight_quant_state_from_module(module)


def _store_as_floats(layer: Any) -> None:
    """Call packed weights of a layer float32, as bitsandbytes' ``bnb_4bit_quant_storage`` can from the start.

    With torch 2.11 ``fully_shard`` fails on integers ("only Tensors of floating point dtype can require
    gradients"). Called bfloat16, bytes that look like a NaN become another one: of 65,536 patterns
    ``torch._foreach_copy_``, by which parts are gathered, changes 253 on CUDA, and of float32 none.
    """
    for weight in layer.parameters():
        if weight.dtype == torch.uint8 and weight.numel() % torch.float32.itemsize == 0:
            weight.data = weight.data.view(-1).view(torch.float32).unsqueeze(1)


def _frozen_bytes(layer: Any) -> list[Any]:
    """The bytes of the frozen weights of a layer that is whole, on the host."""
    frozen = [parameter.detach() for parameter in layer.parameters() if not parameter.requires_grad]
    return [weight.contiguous().view(-1).view(torch.uint8).cpu().clone() for weight in frozen]
