"""The launcher ``hydra/launcher=slurm``, whose options are those of ``conf/hydra/launcher/slurm.yaml``."""

from typing import Any

from hydra_plugins.packed_launcher import PackedLauncher


class SlurmLauncher(PackedLauncher):
    """Runs the jobs of a sweep as tasks of SLURM; ``runner.sweep`` reads the options from the config."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
