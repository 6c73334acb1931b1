"""An optimizer in parts: DeepSpeed's ZeRO (arXiv:1910.02054) behind the methods of one of torch's.

To the trainer it is the optimizer of one process, whose states are saved and loaded as of whole weights.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from runner.config.settings import ParallelSettings
from runner.parallel.group import Group

# The engine asks for it until it is released; of the devices of the machine a process sees its own alone.
_LOCAL_RANK = {"LOCAL_RANK": "0"}


class ShardedOptimizer(Optimizer):
    """The ``optimizer`` of a ``model``, of whose states each process of a ``group`` keeps a part.

    With ``parallel=zero2`` so it does of gradients, with ``zero3`` also of the weights, of which a module has
    its own whole while it computes. Weights are float32, and there is a state for each number of them.
    """

    def __init__(
        self, model: Any, optimizer: Optimizer, settings: ParallelSettings, group: Group, max_norm: float
    ) -> None:
        """``max_norm`` is what gradients are clipped to; 0 leaves them."""
        super().__init__(optimizer.param_groups, optimizer.defaults)  # which has the same groups from here on
        self._model, self._inner, self._process_group = model, optimizer, group
        self._parameters: list[Any] = [each for part in self.param_groups for each in part["params"]]
        self._counts = [len(part["params"]) for part in self.param_groups]
        self._in_parts = settings.zero_stage == 3
        self._saved: dict[int, dict[str, Any]] = {}
        os.environ.update(_LOCAL_RANK)
        self._engine: Any = _engine(model, optimizer, _fields(settings, max_norm))
        self._zero: Any = self._engine.optimizer
        model.in_parts = self._in_parts  # which ``runner.evaluation.generate`` asks

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """A backward pass, the ``last`` of a step or not. Gradients are added up over processes meanwhile."""
        self._engine.set_gradient_accumulation_boundary(last)
        # the engine takes the mean over processes
        self._engine.backward(loss * self._process_group.count, scale_wrt_gas=False)

    def clip_and_step(self) -> torch.Tensor:
        """Clip the gradients of a step, and take it; returns their norm before, over all weights.

        With gradients that are not finite no step is taken: that of stage 3 would have a norm of 1.
        """
        self._zero.check_overflow()
        if self._zero.overflow:
            return torch.tensor(torch.inf)
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nothing: the step was taken when the gradients were clipped."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: the engine frees gradients as it adds them up."""

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """In this block the process that leads has all weights, and all states in ``state_dict``, in the
        memory of the host."""
        self._saved = self._gathered_states()
        full: dict[Any, torch.Tensor] = {}
        for parameter in self._model.parameters() if self._in_parts else ():
            with _whole(parameter):
                if not self._process_group.follows:
                    full[parameter] = parameter.detach().to("cpu", copy=True)
        parts = {parameter: parameter.data for parameter in full}
        for parameter, data in full.items():
            parameter.data = data
        try:
            yield
        finally:
            for parameter, data in parts.items():
                parameter.data = data
            self._saved = {}

    def state_dict(self) -> dict[str, Any]:
        """As that of the optimizer of one process; without states outside of ``in_full``."""
        numbers, groups = iter(range(len(self._parameters))), []
        for count, part in zip(self._counts, self.param_groups, strict=True):
            options = {name: value for name, value in part.items() if name != "params"}
            groups.append({**options, "params": [next(numbers) for _ in range(count)]})
        return {"state": self._saved, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the part of this process of what an optimizer of one process has saved."""
        for part, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            part.update({name: value for name, value in saved.items() if name != "params"})
        states = state_dict["state"]
        if not states:
            return
        for flat in self._flats():
            self._inner.state[flat] = {
                name: torch.zeros_like(flat) if value.dim() else value.clone()
                for name, value in next(iter(states.values())).items()
            }
        self._link()
        for number, parameter in enumerate(self._parameters):
            for name, value in states.get(number, {}).items():  # none of one that never had a gradient
                if value.dim():
                    self._load(parameter, name, value)

    def release(self) -> None:
        """After the last step: every process has the whole model again, without optimizer and engine."""
        whole: dict[Any, torch.nn.Parameter] = {}
        self._engine.destroy()
        self._inner.state.clear()  # whose memory the weights get
        self._flats().clear()
        if self._in_parts:
            for parameter in self._model.parameters():
                with _whole(parameter):
                    data = parameter.detach().clone()
                whole[parameter] = torch.nn.Parameter(data, requires_grad=parameter.requires_grad)
            for module in self._model.modules():
                own = {name: whole.get(each, each) for name, each in module._parameters.items()}
                module._parameters = own  # in place of one that gathers what it is asked for
        self._model.in_parts = False
        for name in _LOCAL_RANK:
            os.environ.pop(name, None)

    def _flats(self) -> list[torch.Tensor]:
        """What the inner optimizer steps: the parts of this process of all weights, as flat tensors."""
        zero = self._zero
        return zero.fp32_partitioned_groups_flat if self._in_parts else zero.single_partition_of_fp32_groups

    def _link(self) -> None:
        """Let each weight of stage 2 know its states: the engine does so behind the first step of the first
        group of weights, when the second group (no weight decay) has none yet."""
        if not self._in_parts:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _gathered_states(self) -> dict[int, dict[str, Any]]:
        """The states of every weight, on the host of the process that leads."""
        from deepspeed.utils import safe_get_full_optimizer_state

        gathered: dict[int, dict[str, Any]] = {}
        if not self._inner.state:
            return gathered
        self._link()
        example = self._inner.state[self._flats()[0]]
        for number, parameter in enumerate(self._parameters):
            gathered[number] = {}
            for name, value in example.items():
                full: Any = safe_get_full_optimizer_state(parameter, name) if value.dim() else value
                if not self._process_group.follows:
                    gathered[number][name] = full.detach().to("cpu", copy=True)
        return gathered

    def _load(self, parameter: Any, name: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not self._in_parts:
            safe_set_full_optimizer_state(parameter, value, name)
            return
        # the engine's own way with whole values fails where the parts are not of equal size
        size = parameter.partition_numel()
        begin = self._process_group.rank * size
        part = value.flatten()[begin : begin + size]
        padded = torch.nn.functional.pad(part, (0, size - part.numel()))
        safe_set_local_optimizer_state(parameter, padded, name)


def held(parameter: Any) -> torch.Tensor:
    """What this process has of a weight: all of it, or its part."""
    return getattr(parameter, "ds_tensor", parameter)


def _whole(parameter: Any) -> Any:
    """A block in which a weight that is in parts is whole."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def _fields(settings: ParallelSettings, max_norm: float) -> dict[str, Any]:
    """The config of the engine: its defaults, but for what the trainer decides."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # which it only counts with
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": settings.zero_stage,
            "overlap_comm": settings.overlap_comm,
            "reduce_bucket_size": settings.reduce_bucket_size,
            "stage3_param_persistence_threshold": settings.stage3_param_persistence_threshold,
            "offload_optimizer": {"device": settings.offload_optimizer},
        },
    }


def _engine(model: Any, optimizer: Optimizer, fields: dict[str, Any]) -> Any:
    """DeepSpeed's engine, of the processes that ``runner.parallel.group.join`` has brought together."""
    with contextlib.redirect_stdout(io.StringIO()):  # it says which of its kernels it has compiled
        import deepspeed

        return deepspeed.initialize(
            model=model, optimizer=optimizer, config=fields, dist_init_required=False
        )[0]


def all_finite(model: Any) -> bool:
    """Whether every trained weight is finite, as far as this process has it."""
    return all(bool(torch.isfinite(held(p)).all()) for p in model.parameters() if p.requires_grad)
