"""The processes of a run on this machine: how the first starts the others, watches them, and ends them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.config.settings import RunConfig
from runner.core.atomic import json_text
from runner.core.environment import WORKERS, available_cores
from runner.core.errors import ExitCode, RunnerError
from runner.core.paths import PACKAGE
from runner.core.process import orphan, ranks
from runner.core.process.ended import how_it_ended, tail
from runner.core.process.ranks import Rank
from runner.parallel.group import ALONE, Group, join, leave
from runner.parallel.processes import processes

FOLDER = "ranks"  # in the run folder: what the processes that follow print and record; gone when all is well
_WORKER = ["-m", "recipes.follow"]
_INTERFACE = "GLOO_SOCKET_IFNAME"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Seconds for the others to end, or for this process to notice itself that one has: gloo does at once, NCCL
# waits for ever; and to learn whether another's end was the cause of an error.
_GRACE, _SETTLE = 10.0, 3.0
_POLL = 0.1


class OtherFailed(RunnerError):
    """Another process of the run failed, or was ended."""

    def __init__(self, message: str, code: int) -> None:
        self.code = ExitCode(code) if code in (ExitCode.DIVERGED, ExitCode.PREEMPTED) else ExitCode.FAILED
        super().__init__(message)


# Records that the run has failed, from a thread while the main one hangs.
OnLost = Callable[[Exception], Any]


@contextmanager
def together(
    config: RunConfig, words: dict[str, Any], rank: Rank, path: Path, lost: OnLost
) -> Iterator[Group]:
    """The group of the processes that share a run, which are started unless something else has.

    ``words`` are what the others' records say of the command, ``path`` is the run folder. When one of those
    that were started fails, the block ends with its error (``OtherFailed``); where it hangs, because the
    device waits for the other, ``lost`` is called and this process ends. The others end with the block.
    """
    shutil.rmtree(path / FOLDER, ignore_errors=True)  # of an earlier start
    count = processes(config)
    if max(rank.count, count) == 1:
        yield ALONE
        return
    others = _Others(path / FOLDER, lost)
    try:
        if rank.count == 1:
            rank = others.start(config, words, count)
        group = join(rank)
        group.share(str(path))
        yield group
        group.wait()
    except Exception as error:
        if (cause := others.cause(error)) is error:
            raise
        raise cause from error
    finally:
        others.end()
        leave(failed=sys.exc_info()[0] is not None)
    shutil.rmtree(path / FOLDER, ignore_errors=True)


def dismiss(rank: Rank) -> None:
    """Let the processes that a launcher has started besides this one end: there is nothing to do."""
    if rank.count > 1:
        join(rank).share(None)
        leave()


@contextmanager
def following(rank: Rank) -> Iterator[tuple[Group, Path | None]]:
    """The group and the folder of a run that another process leads; None where there is nothing to do.

    An error leaves at once: the others see that this process is gone, and wait for nothing from it.
    """
    group = join(rank)
    path = group.share(None)
    yield group, Path(path) if path else None
    if path:
        group.wait()
    leave()


def folder_of(rank: Rank, shared: Path) -> Path:
    """The folder inside of the run folder that a process which follows may write to."""
    path = shared / FOLDER / str(rank.number)
    path.mkdir(parents=True, exist_ok=True)
    return path


class _Others:
    """The other processes that this one has started, each a child that ends with it."""

    def __init__(self, folder: Path, lost: OnLost) -> None:
        self._folder, self._lost = folder, lost
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._pipes: list[int] = []
        self._before: dict[str, str | None] = {}
        self._over = threading.Event()

    def start(self, config: RunConfig, words: dict[str, Any], count: int) -> Rank:
        """Start processes 1 to ``count - 1``; returns the rank of this one, which leads."""
        self._folder.mkdir(parents=True)
        meeting, job = self._folder / "meeting", self._folder / "job.json"
        job.write_text(json_text({"config": dataclasses.asdict(config), **words}), encoding="utf-8")
        environment = {**os.environ, **_of_one_machine(count)}
        for number in range(1, count):
            own = {**environment, **ranks.variables(number, count, str(meeting.absolute()))}
            self._children[number] = self._child(job, number, own)
        self._before = {name: os.environ.get(name) for name in _of_one_machine(count)}
        os.environ.update(_of_one_machine(count))
        threading.Thread(target=self._watch, name="others", daemon=True).start()
        return ranks.lead(count, str(meeting.absolute()))

    def _child(self, job: Path, number: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        reading, writing = os.pipe()
        self._pipes.append(writing)
        path = os.pathsep.join(filter(None, [environment.get("PYTHONPATH", ""), str(PACKAGE.parent)]))
        with (self._folder / f"{number}.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, *_WORKER, str(job)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "PYTHONPATH": path, orphan.VARIABLE: str(reading)},
                pass_fds=[reading],
                start_new_session=True,  # Ctrl-C reaches the one that leads, and through it all
            )
        os.close(reading)
        return child

    def cause(self, error: Exception) -> Exception:
        """What ended the run: the error of another process, where this one's says only that it is gone."""
        if isinstance(error, RunnerError):
            return error
        deadline = time.monotonic() + _SETTLE
        while self._children and self._failed() is None and time.monotonic() < deadline:
            time.sleep(_POLL)
        return self._failed() or error

    def end(self) -> None:
        """Wait a little for those that are ending, and kill the others."""
        self._over.set()
        deadline = time.monotonic() + _GRACE
        completed = sys.exc_info()[0] is None
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()) if completed else 0.0)
            if child.poll() is None:
                child.kill()
            child.wait()
        for pipe in self._pipes:
            os.close(pipe)
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            if (failed := self._failed()) is not None:
                break
        else:
            return
        if not self._over.wait(_GRACE):
            self._lost(failed)
            for child in self._children.values():
                child.kill()
            os._exit(failed.code)

    def _failed(self) -> OtherFailed | None:
        """The error of the first process that has ended otherwise than well; None if there is none."""
        codes = {number: child.poll() for number, child in self._children.items()}
        ended = [(number, code) for number, code in codes.items() if code]
        # one that was ended from outside is why others fail
        for number, code in sorted(ended, key=lambda each: each[1]):
            reason = self._recorded(number) or f"{how_it_ended(code)}\n{tail(self._folder / f'{number}.log')}"
            return OtherFailed(f"process {number} of {len(codes) + 1}: {reason.strip()}", code)
        return None

    def _recorded(self, number: int) -> str | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((self._folder / str(number) / "run.json").read_text(encoding="utf-8"))
            return str(record["error"]["message"])
        return None


def _of_one_machine(count: int) -> dict[str, str]:
    """What processes of one machine share: its cores, unless the user has divided them, and its network."""
    threads = {
        name: str(max(1, len(available_cores()) // count)) for name in _THREADS if name not in os.environ
    }
    # they meet on this machine, whose name may lead nowhere
    loopback = {} if _INTERFACE in os.environ else {_INTERFACE: "lo0" if sys.platform == "darwin" else "lo"}
    return {**threads, **loopback, WORKERS: str(count)}
