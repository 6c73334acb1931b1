"""What the processes of a run say to each other: values on the host, sums of tensors on their devices."""

from __future__ import annotations

import datetime
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runner.core.process.ranks import Rank

if TYPE_CHECKING:
    import torch

# A process that is gone is seen by the one that started it (``runner.parallel.launch``, torchrun), so that
# no clock need tell it from one that prepares rows for hours.
_TIMEOUT = datetime.timedelta(days=7)
_BUCKET = 2**25  # numbers that are added up at once: 128 MiB of float32 besides the gradients


class Group:
    """The processes that share a run; of a process alone every sum is its own value.

    ``rank`` is this process's number, 0 of the one that leads: it writes the run folder and the terminal.
    """

    def __init__(self, rank: int = 0, count: int = 1, hosts: Any = None) -> None:
        """``hosts`` is torch's group for values on the hosts; None is the one of ``join``."""
        self.rank, self.count, self._hosts = rank, count, hosts

    @property
    def follows(self) -> bool:
        """Whether another process leads."""
        return self.rank > 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; any that can be pickled, and small."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, self._hosts)
        return found

    def share(self, value: Any) -> Any:
        """The value of the process that leads."""
        return self.gather(value if not self.follows else None)[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.gather(None)

    @contextmanager
    def first(self) -> Iterator[None]:
        """The process that leads passes this block before the others enter it, and finds empty caches."""
        if self.follows:
            self.wait()
        yield
        if not self.follows:
            self.wait()

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes, which have tensors of the same shapes."""
        import torch.distributed as dist

        self._in_buckets(tensors, dist.all_reduce)

    def spread(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by the one of the process that leads."""
        import torch.distributed as dist

        self._in_buckets(tensors, lambda flat: dist.broadcast(flat, 0))

    def _in_buckets(self, tensors: Sequence[torch.Tensor], send: Callable[[torch.Tensor], Any]) -> None:
        if self.count == 1:
            return
        import torch

        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            send(flat)
            for tensor, sent in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                tensor.copy_(sent.view_as(tensor))


def join(rank: Rank) -> Group:
    """Meet the other processes. Raises ``RuntimeError`` where they cannot."""
    if rank.count == 1:
        return Group()
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    known = rank.rendezvous == "env://"  # torchrun has a store already, to which the variables lead
    with rank.shown():
        dist.init_process_group(
            backend,
            init_method=rank.rendezvous,
            timeout=_TIMEOUT,
            rank=-1 if known else rank.number,
            world_size=-1 if known else rank.count,
        )
    # pickled values would go to a GPU and back
    hosts = dist.new_group(backend="gloo", timeout=_TIMEOUT) if cuda else None
    return Group(rank.number, rank.count, hosts)


def leave(failed: bool = False) -> None:
    """End what ``join`` began. When the run has ``failed`` on CUDA, the end of the process does: another
    process may be missing from a sum that the device waits for."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized() and not (failed and torch.cuda.is_available()):
        dist.destroy_process_group()


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors by type, in lists of about ``_BUCKET`` numbers, the same in every process."""
    by_type: dict[Any, list[torch.Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_type[tensor.dtype].append(tensor)
    for alike in by_type.values():
        ends = list(itertools.accumulate(tensor.numel() for tensor in alike))
        for _, bucket in itertools.groupby(zip(ends, alike, strict=True), lambda each: each[0] // _BUCKET):
            yield [tensor for _, tensor in bucket]


ALONE = Group()
