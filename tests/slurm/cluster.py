"""A SLURM cluster of one node on 127.0.0.1, made of Debian's ``slurm-wlm`` and ``munge``, without systemd.

    python tests/slurm/cluster.py FOLDER

starts one that ends with Ctrl-C or SIGTERM, and prints the variable by which the commands of SLURM find it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
# Debian installs the daemons where only root looks for programs.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# a requeued job waits until the credential of its first start has run out: two minutes by default
AuthInfo=socket={folder}/munge.socket,cred_expire=15
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
# also where the machine has fewer cores
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=20
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=long Nodes=node Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=short Nodes=node MaxTime=5 State=UP
"""


def missing() -> list[str]:
    """The programs of a cluster that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@contextlib.contextmanager
def cluster(folder: Path, cores: int = 2) -> Iterator[dict[str, str]]:
    """Start the daemons in an empty folder; give the variables by which the commands find them.

    Raises ``RuntimeError`` with the end of their logs where they do not come up. ``folder`` must have a short
    name: that of a socket has 107 bytes at most.
    """
    conf = folder / "slurm.conf"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    facts = {"host": host, "user": pwd.getpwuid(os.getuid()).pw_name, "ports": _free_ports(2), "cores": cores}
    conf.write_text(CONF.format(folder=folder, **facts))
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    variables = {"SLURM_CONF": str(conf), "PATH": PATH}
    places = {"socket": folder / "munge.socket", "key-file": key, "pid-file": folder / "munge.pid"}
    places |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
    # --force: the folder of a test may be one that others can write to
    munged = ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in places.items())]
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(_start(munged, variables, folder))
        _wait(lambda: places["socket"].exists(), started, folder)
        started.append(_start(["slurmctld", "-D", "-f", str(conf)], variables, folder))
        started.append(_start(["slurmd", "-D", "-f", str(conf), "-N", "node"], variables, folder))
        _wait(lambda: _state(variables) == "idle", started, folder)
        yield variables
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(command: list[str], variables: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / f"{command[0]}.out").open("wb") as output:
        environment = {**os.environ, **variables}
        program = shutil.which(command[0], path=PATH) or command[0]
        return subprocess.Popen([program, *command[1:]], env=environment, stdout=output, stderr=output)


def _state(variables: dict[str, str]) -> str:
    """The state of the node: ``idle``, ``down*``; empty as long as nobody answers."""
    done = subprocess.run(
        ["sinfo", "--noheader", "--partition=long", "--format=%T"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def _wait(there: Callable[[], bool], started: list[subprocess.Popen[bytes]], folder: Path) -> None:
    until = time.monotonic() + 60
    while not there():
        if time.monotonic() > until or any(process.poll() is not None for process in started):
            logs = [*folder.glob("*.log"), *folder.glob("*.out")]
            ends = (f"{file.name}:\n{file.read_text()[-2000:]}" for file in sorted(logs))
            raise RuntimeError("the cluster does not come up\n" + "\n".join(ends))
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with cluster(Path(sys.argv[1]).absolute()) as found, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={found['SLURM_CONF']}", flush=True)
        while True:
            time.sleep(60)
