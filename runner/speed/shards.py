"""A frozen base in parts, one for each process of a run, of which a layer is whole while it is computed."""

from __future__ import annotations

import itertools
from typing import Any

from runner.config.settings import ParallelSettings
from runner.core.errors import ConfigError, Issue, RunnerError
from runner.parallel.group import Group
from runner.speed.layers import decoder_layers


def in_parts(settings: ParallelSettings, group: Group) -> bool:
    """Whether each process of a run keeps a part of the base."""
    return settings.engine == "fsdp2" and group.count > 1


def shard(model: Any, settings: ParallelSettings, group: Group) -> None:
    """Bring a model from the host to the device of this process, which gets its part of the frozen weights of
    layers and embeddings, through torch's ``fully_shard``, and has them whole one at a time.

    Weights that are trained stay whole in every process, as under ddp, so that gradients, optimizer and
    checkpoints are the same; so does the head, which a loss in parts reads many times, and embeddings that
    are tied to it. bitsandbytes' weights are sharded as the packed bytes that they are: their layers know the
    scales, and put the two together when they compute. Raises ``ConfigError`` for a model without a list of
    layers of one class, ``RunnerError`` where a layer does not come back as it was.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (group.count,))
    layers = decoder_layers(model)
    if not layers:
        message = f"the layers of {type(decoder).__name__} are of several classes, and none would be in parts"
        raise ConfigError(Issue("parallel=fsdp2", message, "parallel=ddp"))
    units = [*_embeddings(model), *layers]
    for unit in units:
        _store_as_floats(unit)
    first: Any = layers[0]
    before = _frozen_bytes(first)
    for unit in units:
        trained = {parameter for parameter in unit.parameters() if parameter.requires_grad}
        fully_shard(
            unit, mesh=mesh, reshard_after_forward=settings.reshard_after_forward, ignored_params=trained
        )
    inside = {parameter for unit in units for parameter in unit.parameters()}  # which are others now
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


def _store_as_floats(unit: Any) -> None:
    """Call bytes of frozen weights float32, as bitsandbytes' ``bnb_4bit_quant_storage`` can from the start.

    With torch 2.11 ``fully_shard`` fails on integers ("only Tensors of floating point dtype can require
    gradients"). Called bfloat16, bytes that look like a NaN become another one: of 65,536 patterns
    ``torch._foreach_copy_``, by which parts are gathered, changes 253 on CUDA, and of float32 none.
    """
    import torch

    for weight in unit.parameters():
        if weight.dtype == torch.uint8 and weight.numel() % torch.float32.itemsize == 0:
            weight.data = weight.data.view(-1).view(torch.float32).unsqueeze(1)


def _frozen_bytes(layer: Any) -> list[Any]:
    """The bytes of the frozen weights of a layer that is whole, on the host."""
    import torch

    frozen = [parameter.detach() for parameter in layer.parameters() if not parameter.requires_grad]
    return [weight.contiguous().view(-1).view(torch.uint8).cpu().clone() for weight in frozen]


def _embeddings(model: Any) -> list[Any]:
    """The embeddings of tokens, if they are frozen, plain, and not the head's weights."""
    import torch

    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight = getattr(table, "weight", None)
    if not isinstance(table, torch.nn.Embedding) or weight is None or weight.requires_grad:
        return []
    return [] if head is not None and getattr(head, "weight", None) is weight else [table]
