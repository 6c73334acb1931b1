"""Submit jobs of a sweep to SLURM, through submitit, whose batch script is left beside its logs."""

from __future__ import annotations

import io
import logging
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, ExitCode, Issue
from runner.core.paths import PACKAGE

LAUNCHER = "hydra/launcher=slurm"
# Behind the run, in the batch script, which SLURM's signals do not reach. 143 is a worker that was ended by
# SIGTERM before it could listen. What is RUNNING still was asked to end by its time limit, by a preemption
# that waits, or by `scancel --signal=TERM`; what is not, SLURM itself requeues, or was told to cancel.
_REQUEUE = """\
code=$?
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
if [ $code = {preempted} ] || [ $code = 143 ]; then
  if [ "$state" = RUNNING ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit $code"""


def check_installed() -> None:
    """Raise ``ConfigError`` where submitit, or SLURM, is missing."""
    if find_spec("submitit") is None:
        hint = "pip install -c constraints.txt -e '.[slurm]', or pip install submitit"
        raise ConfigError(Issue(LAUNCHER, "needs the package submitit", hint))
    if shutil.which("sbatch") is None:
        hint = "start it on a login node, or leave it out to use the GPUs of this machine"
        raise ConfigError(Issue(LAUNCHER, "no sbatch here: this machine does not submit jobs to SLURM", hint))


def submit(folder: Path, name: str, files: Sequence[Path], options: Mapping[str, Any]) -> None:
    """Submit a task for each file of a job, in this order: an array, or a job where it is one file.

    ``name`` is that of SLURM's job, ``folder`` the one for scripts and logs, ``options`` are those of
    ``conf/hydra/launcher/slurm.yaml``. Raises ``ConfigError`` with sbatch's words where it submits nothing.
    """
    import submitit
    from submitit.core.utils import FailedJobError, environment_variables
    from submitit.helpers import clean_env

    from runner.sweep.slurm.task import run_task

    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # what it says of an error is raised too
    executor = submitit.SlurmExecutor(folder, python=options["python"])
    executor.update_parameters(job_name=name, **_parameters(options))
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        # what SLURM says of a job that this process may run in is not for others; where SLURM is, is
        with redirect_stderr(io.StringIO()), clean_env(), environment_variables(**where), executor.batch():
            for file in files:
                executor.submit(run_task, str(file))
    except (FailedJobError, OSError) as error:
        lines = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if line.strip()]
        hint = "see sinfo and sacctmgr show associations user=$USER for what this cluster has"
        raise ConfigError(Issue(LAUNCHER, f"sbatch submits nothing: {'; '.join(lines)}", hint)) from error


def _parameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as those of submitit, with what a job of a sweep needs beside them."""
    own = ("python", "requeues", "setup", "srun_args", "sbatch_args")
    given = {key: value for key, value in options.items() if key not in own}
    paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(PACKAGE.parent)]
    path = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    srun = list(options["srun_args"] or [])
    if cpus := given.get("cpus_per_task"):
        srun.append(f"--cpus-per-task={cpus}")  # which srun of SLURM 22.05 to 23.02 does not take over
    more: dict[str, Any] = {"requeue": True}
    more["signal"] = f"TERM@{options['signal_delay_s']}"  # submitit's own, SIGUSR2, would end a worker
    for text in options["sbatch_args"] or []:
        name, equals, value = text.removeprefix("--").partition("=")
        more[name] = value if equals else True
    requeue = _REQUEUE.format(preempted=int(ExitCode.PREEMPTED), requeues=options["requeues"])
    return {
        **given,
        "setup": [f"export PYTHONPATH={shlex.quote(path)}", *(options["setup"] or [])],
        "teardown": [requeue],
        "srun_args": srun,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own would count as one of the cluster's
        "additional_parameters": more,
    }
