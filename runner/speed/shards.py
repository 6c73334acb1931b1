"""A frozen base in parts, one for each process of a run, of which a layer is whole while it is computed."""

from __future__ import annotations

from typing import Any

from runner.config.settings import ParallelSettings
from runner.core.errors import ConfigError, Issue
from runner.parallel.group import Group
from runner.speed.layers import decoder_layers


def shard(model: Any, settings: ParallelSettings, group: Group) -> bool:
    """Leave a process its part of the frozen weights of the layers, through torch's ``fully_shard``; returns
    whether it has. Raises ``ConfigError`` for a model without a list of layers of one class.

    Weights that are trained stay whole in every process, as under ddp, so that gradients, optimizer and
    checkpoints are the same; so do embeddings and head. bitsandbytes' weights are sharded as the packed bytes
    that they are: their layers know the scales, and put the two together when they compute.
    """
    if settings.engine != "fsdp2" or group.count == 1:
        return False
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (group.count,))
    layers = decoder_layers(model)
    if not layers:
        message = f"the layers of {type(decoder).__name__} are of several classes, and none would be in parts"
        raise ConfigError(Issue("parallel=fsdp2", message, "parallel=ddp"))
    for layer in layers:
        trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        fully_shard(
            layer, mesh=mesh, reshard_after_forward=settings.reshard_after_forward, ignored_params=trained
        )
    inside = {parameter for layer in layers for parameter in layer.parameters()}  # which are others now
    # the root, in whose passes the layers' gathers overlap with what is computed
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - inside)
    model.in_parts = True  # which ``runner.evaluation.generate`` asks
    return True
