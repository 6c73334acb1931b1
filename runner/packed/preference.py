"""The objective of preference tuning: pairs of answers, compared with a reference that all members share."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from runner.data.labels import IGNORE, Encoded
from runner.packed.batches import Collator
from runner.packed.member import Member
from runner.packed.memory import run_in_chunks
from runner.packed.objective import Batch
from runner.training.dpo_loss import FIGURES, FusedCausalLMOutput, as_output, by_pair, pair_loss
from runner.training.token_loss import TokenLogprobs

if TYPE_CHECKING:
    from runner.packed.trainer import PackedTrainer


class Pairs:
    """TRL's ``DPOTrainer``: each member's loss is TRL's own, with the member's arguments.

    The reference is the model that all members start from: the base, or with ``adapter`` the base under the
    adapter that they continue. Its log-probabilities are computed once for each distinct sequence, before the
    first step. The losses are computed on the host: they are many small steps on few numbers.
    """

    sides = 2
    figures = FIGURES
    weighted = True
    mean_logits = True

    def __init__(self, pad_token_id: int, adapter: bool) -> None:
        self._adapter = adapter
        self._reference: dict[bytes, float] = {}
        self.collator: Collator = _WithReference(pad_token_id, self._reference)

    def start(self, trainer: PackedTrainer) -> None:
        """Compute the reference's log-probabilities of all rows."""
        lists = {id(rows): rows for m in trainer.members for rows in (m.train, m.held_out)}
        distinct = {_key(side): side for rows in lists.values() for row in rows for side in row.sides}
        longest_first = sorted(distinct.items(), key=lambda item: -len(item[1].input_ids))

        def run(first: int, last: int) -> None:
            keys, rows = zip(*longest_first[first:last], strict=True)
            self._reference.update(zip(keys, self._log_probs(trainer, rows), strict=True))

        cells_per_pass = trainer.cells_per_pass * trainer.args.per_device_train_batch_size * self.sides
        run_in_chunks(len(longest_first), cells_per_pass, run)

    @torch.no_grad()
    def _log_probs(self, trainer: PackedTrainer, rows: Sequence[Encoded]) -> list[float]:
        """Summed log-probability of the labelled tokens of each row."""
        model = trainer.adapters.model
        model.eval()
        trainer.adapters.state.show(0, 1)  # they are all alike before the first step
        with nullcontext() if self._adapter else model.disable_adapter():
            scores = trainer.score(trainer.collator.pad(rows))
        return scores.log_probs.sum(1).double().tolist()

    def divisors(self, batches: list[Batch], members: int) -> torch.Tensor:
        """The number of batches: the loss is the mean of their means."""
        return torch.full((members,), len(batches))

    def measure(
        self, scores: TokenLogprobs, batch: Batch, members: list[Member]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """TRL's loss and figures of each member's pairs."""
        output, rows = _on_host(scores), len(batch["labels"]) // len(members)
        found = []
        for index, member in enumerate(members):
            found.append(_loss(member, output, batch, slice(index * rows, (index + 1) * rows)))
        where = scores.log_probs.device
        table = torch.tensor([values for _, values in found], dtype=torch.float64).T.to(where)
        losses = torch.stack([loss for loss, _ in found]).to(where)
        return losses, dict(zip(self.figures, table, strict=True))

    def measure_rows(self, scores: TokenLogprobs, batch: Batch, members: list[Member]) -> torch.Tensor:
        """The loss of each pair; every pair weighs the same."""
        output, pairs = _on_host(scores), len(batch["labels"]) // len(members) // 2
        table = torch.full((len(members), pairs, 2), math.nan, dtype=torch.float64)
        for index, member in enumerate(members):
            if by_pair(member.arguments):
                first = 2 * pairs * index
                losses = [
                    _loss(member, output, batch, slice(first + pair, first + pairs + pair + 1, pairs))[0]
                    for pair in range(pairs)
                ]
                table[index] = torch.stack([torch.stack(losses), torch.ones(pairs)], -1)
        return table.to(scores.log_probs.device)


class _WithReference(Collator):
    """Adds ``reference`` [rows]: the reference's summed log-probability of each row."""

    def __init__(self, pad_token_id: int, reference: dict[bytes, float]) -> None:
        super().__init__(pad_token_id)
        self._reference = reference

    def __call__(self, rows: Sequence[Encoded]) -> Batch:
        found = [self._reference[_key(row)] for row in rows]
        return self.pad(rows) | {"reference": torch.tensor(found, dtype=torch.float64)}


def _loss(
    member: Member, output: FusedCausalLMOutput, batch: Batch, rows: slice
) -> tuple[torch.Tensor, list[float]]:
    """Loss and figures of some rows of a batch: chosen ones, then as many rejected ones."""
    own: Any = {name: values[rows] for name, values in output.items()}
    labels, log_probs = batch["labels"][rows], own["log_probs"]
    # until its first step a member is the reference: no rounding may come between equal rewards
    reference = batch["reference"][rows] if member.moved else log_probs.detach().sum(1)
    chosen, rejected = reference.to(log_probs.dtype).chunk(2)
    return pair_loss(
        member.arguments,
        FusedCausalLMOutput(**own),
        {
            "input_ids": batch["input_ids"][rows],
            "completion_mask": (labels != IGNORE).long(),
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        },
    )


def _on_host(scores: TokenLogprobs) -> FusedCausalLMOutput:
    """The scores in two copies, of which that of the log-probabilities lets gradients through."""
    names = ("entropy", "mean_logits", "is_top1")
    output: Any = as_output(scores)
    log_probs = output.log_probs.cpu()
    others = torch.stack([output[name].detach().to(log_probs.dtype) for name in names]).cpu()
    entropy, mean_logits, is_top1 = others
    return FusedCausalLMOutput(
        log_probs=log_probs, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1 > 0
    )


def _key(row: Encoded) -> bytes:
    """Stands for what the reference sees of a row: ids and labels."""
    return hashlib.blake2b(array("q", row.input_ids + row.labels).tobytes(), digest_size=16).digest()
