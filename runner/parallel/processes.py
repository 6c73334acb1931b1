"""How many processes share a run, whether this machine has room for them, and what each has of a step."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from runner.config.settings import RunConfig
from runner.core.environment import available_cores
from runner.core.errors import ConfigError, Issue
from runner.core.process.cuda_devices import cuda_devices
from runner.core.process.ranks import Rank
from runner.parallel.deal import Shares, share


def processes(config: RunConfig) -> int:
    """How many processes of this machine share a run, as far as its config says."""
    settings = config.parallel
    return 1 if settings.engine == "none" else settings.num_processes or max(1, len(cuda_devices()))


def planned_shares(config: RunConfig) -> Shares:
    """What each process will have of a step."""
    trainer = config.trainer
    passes = int(trainer.get("gradient_accumulation_steps") or 1) * _times(config)
    return share(int(trainer.get("per_device_train_batch_size") or 8), passes, processes(config))


def same_rows(config: RunConfig) -> Iterator[tuple[dict[str, int], Shares]]:
    """All batches with which a step has as many rows as a config's, smallest first: the fields of ``trainer``
    that say so, and what each process will have then."""
    planned, times = planned_shares(config), _times(config)
    rows = planned.batch * planned.passes
    for batch in range(1, rows + 1):
        accumulation, rest = divmod(rows, batch * times)
        if not rest:
            fields = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
            yield fields, share(batch, accumulation * times, planned.count)


def _times(config: RunConfig) -> int:
    """How many passes of a step the trainer's accumulation counts once."""
    return 1 if config.parallel.keep_batch else processes(config)


def check(config: RunConfig, rank: Rank) -> None:
    """Raise ``ConfigError`` where this machine, or what has started this process, cannot run a config so."""
    settings = config.parallel
    wanted = settings.num_processes
    where = f"parallel.num_processes={wanted}"
    planned = config.recipe == "plan"
    if planned and wanted:
        return  # of any machine
    if settings.zero_stage and not planned and find_spec("deepspeed") is None:
        hint = "pip install -c constraints.txt -e '.[deepspeed]', or pip install deepspeed"
        raise ConfigError(Issue(f"parallel={settings.engine}", "needs the package deepspeed", hint))
    if settings.engine == "none":
        if rank.count > 1:
            message = "several processes share a run only if its config says how"
            raise ConfigError(Issue(f"WORLD_SIZE={rank.count}", message, "parallel=ddp"))
        return  # without a look for devices, which starts nvidia-smi
    devices, count = len(cuda_devices()), len(available_cores())
    if rank.count > 1:
        if wanted not in (None, rank.count):
            message = f"{rank.count} processes have been started"
            raise ConfigError(Issue(where, message, f"leave it out, or start {wanted}"))
    elif wanted is None and not devices:
        message = "this machine has no CUDA device, for each of which there would be a process"
        hint = f"how many shall share its {count} cores: parallel.num_processes={min(2, count)}"
        hint = "for how many GPUs to plan: parallel.num_processes=2" if planned else hint
        raise ConfigError(Issue("parallel.num_processes", message, hint))
    elif wanted is not None and wanted > (devices or count):
        there = (
            f"{devices} CUDA device{'s' * (devices > 1)}" if devices else f"{count} cores and no CUDA device"
        )
        raise ConfigError(Issue(where, f"this machine has {there}", f"allowed: 1 to {devices or count}"))
