"""What cannot be with a run that several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runner.config.origins import Origins
from runner.config.settings import ZERO, ParallelSettings
from runner.core.errors import Issue

Values = dict[str, Any]

# Optimizers that take a step for each weight within the backward pass, before gradients are added up.
_IN_BACKWARD = ("layerwise", "lomo")
# Losses that are no mean over rows: a part of a batch does not say what the batch would.
_OF_BATCHES = ("aot", "aot_unpaired", "sft", "kto", "apo_zero_unpaired")

# Optimizers with a state for each number of a weight, which any part of it has by itself.
_BY_NUMBER = ("adamw_torch_fused", "adamw_torch", "sgd")
# Keys of the section that only some engines read.
_READ_BY = {
    "reshard_after_forward": ("fsdp2",),
    "overlap_comm": tuple(ZERO),
    "reduce_bucket_size": tuple(ZERO),
    "offload_optimizer": tuple(ZERO),
    "stage3_param_persistence_threshold": ("zero3",),
}


def check_parallel(values: Values, origins: Origins) -> Iterator[Issue]:
    """An issue for each key that a run of several processes cannot have, or has no use for."""
    section, trainer = values.get("parallel") or {}, values.get("trainer") or {}
    engine = section.get("engine", "none")
    for name, engines in _READ_BY.items():
        if engine not in engines and section.get(name, default := getattr(ParallelSettings, name)) != default:
            message = f"parallel.{name} has no effect with parallel.engine={engine}"
            yield Issue(origins.where(f"parallel.{name}"), message, f"parallel={engines[0]}, or leave it out")
    if engine == "none":
        if section.get("num_processes") not in (None, 1):
            message = "parallel.num_processes has no effect with parallel.engine=none"
            yield Issue(origins.where("parallel.num_processes"), message, "parallel=ddp")
        return
    model = values.get("model") or {}
    if model.get("device_map"):
        message = f"model.device_map={model['device_map']} with parallel={engine}: each process has one GPU"
        yield Issue(origins.where("model.device_map"), message, "one of the two")
    if engine == "fsdp2":
        yield from _check_parts(values, origins)
    if engine in tuple(ZERO):  # which may be anything here, a list too
        yield from _check_zero(values, origins, engine)
    if values.get("on_oom"):
        message = f"on_oom={values['on_oom']} with parallel={engine}: no process can shrink its batch alone"
        yield Issue(origins.where("on_oom"), message, "leave it out")
    optimizer = str(trainer.get("optim", ""))
    if any(name in optimizer for name in _IN_BACKWARD):
        message = f"trainer.optim={optimizer} takes its steps before the processes have added up gradients"
        yield Issue(origins.where("trainer.optim"), message, "trainer.optim=adamw_torch_fused")
    if (strategy := trainer.get("train_sampling_strategy")) == "batch_rebalance":
        message = f"trainer.train_sampling_strategy={strategy} deals rows to processes in its own way"
        yield Issue(origins.where("trainer.train_sampling_strategy"), message, "group_by_length, or random")
    losses = trainer.get("loss_type") or []
    coupled = [loss for loss in ([losses] if isinstance(losses, str) else losses) if loss in _OF_BATCHES]
    if values.get("recipe") == "kto" or coupled:
        what = f"trainer.loss_type={coupled[0]}" if coupled else "recipe=kto"
        message = f"{what} with parallel={engine}: its loss compares the rows of a batch with each other"
        yield Issue(origins.where("parallel.engine"), message, "parallel=none")


def _check_parts(values: Values, origins: Origins) -> Iterator[Issue]:
    """An issue where there is no frozen base that could be in parts."""
    if not (values.get("lora") or values.get("adapter")):
        message = "parallel=fsdp2 keeps a part of the frozen base on each GPU, and lora=none trains all of it"
        yield Issue(origins.where("parallel.engine"), message, "parallel=ddp, or lora=r16")
    if (values.get("trainer") or {}).get("precompute_ref_log_probs"):
        message = (
            "trainer.precompute_ref_log_probs with parallel=fsdp2: TRL reads all weights of the reference"
        )
        yield Issue(
            origins.where("trainer.precompute_ref_log_probs"), message, "leave it out, or parallel=ddp"
        )
    if (values.get("quantization") or {}).get("load_in_8bit"):
        message = (
            "parallel=fsdp2 with int8: a part of a weight has not the scales that bitsandbytes keeps in it"
        )
        yield Issue(origins.where("quantization.load_in_8bit"), message, "quantization=nf4, fp8 or none")


def _check_zero(values: Values, origins: Origins, engine: str) -> Iterator[Issue]:
    """An issue for what DeepSpeed cannot keep in parts, or what would not be the run of one process."""
    if values.get("lora") or values.get("adapter"):
        message = (
            f"parallel={engine} keeps what is trained in parts, which of a model with an adapter is little"
        )
        hint = "lora=none; or parallel=fsdp2, with the base in parts, also in 4 bits; or parallel=ddp"
        yield Issue(origins.where("parallel.engine"), message, hint)
        return
    model, trainer = values.get("model") or {}, values.get("trainer") or {}
    refused = {
        "model.dtype": (model.get("dtype", "auto"), ("auto", "float32"), "weights in parts are float32"),
        "trainer.optim": (
            str(trainer.get("optim", _BY_NUMBER[0])),
            _BY_NUMBER,
            "its states are those of whole weights",
        ),
        "trainer.torch_compile": (
            bool(trainer.get("torch_compile")),
            (False,),
            "a compiled model passes none of the hooks by which the engine works",
        ),
    }
    for key, (value, allowed, reason) in refused.items():
        if value not in allowed:
            message = f"{key}={value} with parallel={engine}: {reason}"
            yield Issue(origins.where(key), message, f"{key}={' or '.join(map(str, allowed))}")


def check_in_sweep(values: Values, origins: Origins) -> Iterator[Issue]:
    """An issue where a cell of a sweep would be shared by several processes."""
    engine = (values.get("parallel") or {}).get("engine", "none")
    if engine != "none":
        message = f"parallel={engine} in a sweep, which has a run for each GPU at the same time"
        yield Issue(origins.where("parallel.engine"), message, "leave it out; sweep.devices says which GPUs")
