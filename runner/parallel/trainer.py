"""A trainer that shares its steps with other processes: to the library it is alone, with fewer rows."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from runner.config.settings import ParallelSettings
from runner.core import signals
from runner.core.errors import RunnerError
from runner.parallel.deal import Deal, DealtSampler, Part, Shares, shares_of
from runner.parallel.group import ALONE, Group
from runner.parallel.zero import ShardedOptimizer

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object  # the library's trainer stands behind this class among the bases


class SharedTrainer(_Base):
    """Deals the rows of every step to the processes of a ``group``, and adds up what they compute.

    Every process has the same weights, the same optimizer and the same log, since the gradients and the loss
    of a step are the sums over all. They are added up once a step, behind its last backward pass: a gradient
    that is recorded in a CUDA graph passes none of the hooks by which torch's DDP would do it meanwhile, and
    those of an adapter are a hundredth of what a pass reads. With ``parallel=zero2`` and ``zero3`` DeepSpeed
    adds gradients up during each backward pass, and keeps them in parts. Its checkpoints are those of one
    process alone.
    """

    group: Group = ALONE
    sharded: ShardedOptimizer | None = None  # while there are steps to take
    _settings: ParallelSettings
    shares: Shares
    _deal: Deal
    _eval_deal: Deal
    _part: Part
    _loss: torch.Tensor | None  # of the step so far, in this process
    _eval_turn = 0
    _total_train_tokens: int

    def share_steps(self, group: Group, args: TrainingArguments, settings: ParallelSettings) -> None:
        """Deal the steps of ``args`` to the processes of ``group``; ``args`` become those of this one."""
        self.group, self.shares, self._settings = group, shares_of(args, group.count), settings
        args.per_device_train_batch_size = self.shares.size
        args.gradient_accumulation_steps = self.shares.turns
        if group.follows:
            args.report_to, args.save_total_limit = [], None  # what the first one does

    def check_copies(self, when: str) -> None:
        """Raise ``RunnerError`` where the trained weights are not the same in all processes."""
        if self.group.count == 1:
            return
        digests = self.group.gather(_digest(self.model))
        if other := [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]:
            raise RunnerError(f"{when}, the weights of process {', '.join(other)} are not those of process 0")

    def share_backward(self) -> None:
        """Weigh the loss of a part of a step before its backward pass."""
        if self.group.count > 1:
            backward = self.accelerator.backward

            def weighted(loss: torch.Tensor, **kwargs: Any) -> None:
                if self.sharded is None:
                    backward(loss * self._weight, **kwargs)
                else:
                    self.sharded.backward(loss * self._weight, last=self.accelerator.sync_gradients)

            self.accelerator.backward = weighted
            self._weight, self._loss = 1.0, None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The library's, in parts where the config says so."""
        self.optimizer = super().create_optimizer(*args, **kwargs)
        if self._settings.zero_stage and self.group.count > 1:
            most = self.args.max_grad_norm
            self.sharded = ShardedOptimizer(self.model, self.optimizer, self._settings, self.group, most)
            self.optimizer = self.sharded
        return self.optimizer

    def in_full(self) -> AbstractContextManager[None]:
        """A block in which the process that leads has all weights and states; all processes enter it."""
        return self.sharded.in_full() if self.sharded else nullcontext()

    def end_steps(self) -> None:
        """After the last step: what was in parts is whole again."""
        if self.sharded is not None:
            self.sharded.release()
            self.sharded = self.optimizer = None

    def _clip_grad_norm(self, model: Any) -> Any:
        return super()._clip_grad_norm(model) if self.sharded is None else self.sharded.clip_and_step()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if self.sharded is not None and grad_norm is None:  # trainer.max_grad_norm=0
            return self.sharded.clip_and_step()
        return super()._get_grad_norm(model, grad_norm)

    def take_part(self, step: int, turn: int) -> Part:
        """What of an optimizer step of the run comes next."""
        if self.group.count == 1:
            return Part(0, 1, turn, 0, 1.0)
        self._part = self._deal.part(step % self._deal.steps, turn)
        return self._part

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass; behind the last of a step, what all processes found.

        Returns the loss of the step then, and 0 before.
        """
        if self.group.count == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        by_items = self.loss_is_scaled_for_ga
        if by_items is None:
            by_items = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        self._weight = float(not self._part.idle) if by_items else self._part.weight
        before = self._total_train_tokens, {name: len(found) for name, found in self._train_metrics().items()}
        loss = super().training_step(model, inputs, num_items_in_batch) * self._weight
        if self._part.idle:
            self._forget(*before)
        self._loss = loss if self._loss is None else self._loss + loss
        if not self.accelerator.sync_gradients:
            return torch.zeros_like(loss)
        return self._added_up(model)

    def _forget(self, tokens: int, metrics: dict[str, int]) -> None:
        """Take back what rows that were computed for nothing left in the log."""
        self._total_train_tokens = tokens
        found = self._train_metrics()
        for name in list(found):
            del found[name][metrics.get(name, 0) :]
            if not found[name]:  # of which nothing takes a mean
                del found[name]

    def _added_up(self, model: Any) -> torch.Tensor:
        """The loss of the step; its gradients, tokens and signals are those of all processes from here on."""
        reduced = self.sharded is not None  # by the engine
        trained = [] if reduced else [each for each in model.parameters() if each.requires_grad]
        tokens, total = self._tokens_of_step(), self._total_train_tokens
        found = self.group.gather(
            (signals.received(), tokens, [parameter.grad is not None for parameter in trained])
        )
        if name := next((name for name, _, _ in found if name), None):
            signals.accept(name)  # all processes in the same step
        self._total_train_tokens = total - tokens + sum(each for _, each, _ in found)
        if counted := self._train_metrics().get("num_tokens"):
            counted[:] = [self._total_train_tokens]
        # experts that no row of this process came to have gradients elsewhere
        used = [any(here) for here in zip(*(each for _, _, each in found), strict=True)]
        sums: list[Any] = [self._loss]  # and the gradients, all replaced by the sums over all processes
        for parameter, is_used in zip(trained, used, strict=True):
            if is_used:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                sums.append(parameter.grad)
        self.group.add(sums)
        self._loss = None
        return sums[0]

    def _tokens_of_step(self) -> int:
        """The tokens that this process has trained on in the step."""
        raise NotImplementedError

    def _train_metrics(self) -> dict[str, list[Any]]:
        raise NotImplementedError

    def share_metrics(self, metrics: dict[str, list[Any]]) -> None:
        """Make the values of each metric, numbers, those of all processes."""
        if self.group.count == 1:
            return
        everyones = self.group.gather({name: list(found) for name, found in metrics.items()})
        for name in {name for each in everyones for name in each}:
            metrics[name] = [value for each in everyones for value in each.get(name, ())]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The loss tokens of the step in all processes."""
        found: Any = super()._get_num_items_in_batch(batch_samples, device)
        if self.group.count == 1 or found is None:
            return found
        step = self.state.global_step % self._deal.steps
        used = [batch for turn, batch in enumerate(batch_samples) if not self._deal.part(step, turn).idle]
        count: Any = super()._get_num_items_in_batch(used, device) if used else None
        count = torch.zeros_like(torch.as_tensor(found, device=device)) if count is None else count
        self.group.add([count])
        return count

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The rows of this process, in an order that is everyone's."""
        sampler: Any = super()._get_train_sampler(train_dataset)
        if self.group.count == 1 or sampler is None:
            return sampler
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size = self.shares.batch * self.shares.passes
        if isinstance(sampler, RandomSampler):  # as accelerate would make it, which does not see it in ours
            sampler = SeedableRandomSampler(sampler.data_source, data_seed=self.args.data_seed)
        self._deal = Deal(self.shares, len(sampler), self.group.rank, self.args.dataloader_drop_last)
        return DealtSampler(sampler, self._deal, self.group)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """The held-out rows of this process: every so manieth batch."""
        sampler: Any = super()._get_eval_sampler(eval_dataset)
        if self.group.count == 1 or sampler is None:
            return sampler
        size, rows, count = self.args.per_device_eval_batch_size, len(sampler), self.group.count
        batches = math.ceil(rows / size)
        shares = Shares(size, batches, count, size, math.ceil(batches / count))
        self._eval_deal = Deal(shares, rows, self.group.rank, self.args.dataloader_drop_last)
        return DealtSampler(sampler, self._eval_deal, self.group)

    def begin_evaluation(self) -> None:
        """The first batch of an evaluation comes next."""
        self._eval_turn = 0

    def eval_is_idle(self) -> bool:
        """Whether the next batch of an evaluation is one that others have."""
        self._eval_turn += 1
        return self.group.count > 1 and self._eval_deal.part(0, self._eval_turn - 1).idle


def _digest(model: Any) -> str:
    """One number for all trained weights of a model."""
    digest = xxhash.xxh3_128()
    for parameter in model.parameters():
        if parameter.requires_grad:
            digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy())
    return digest.hexdigest()
