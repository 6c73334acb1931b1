"""The packed launcher is one as Hydra means it: Hydra's own tests of launchers, as its plugins run them."""

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.version import VersionBase
from packaging.version import Version

from runner.cli import compose  # noqa: F401  puts the plugin where Hydra looks for it
from runner.core.paths import PLUGINS


@pytest.fixture(autouse=True)
def plugin_of_other_programs(monkeypatch):
    """The suite starts programs that know nothing of the runner."""
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    monkeypatch.setattr(VersionBase.instance(), "version_base", Version("1.1"))  # without one of its own


def test_hydra_finds_the_launcher():
    assert "PackedLauncher" in [each.__name__ for each in Plugins.instance().discover(Launcher)]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("packed", [])])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("packed", ["hydra/sweeper=basic", "hydra.sweeper.max_batch_size=2"])]
)
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({}, ["-m", "hydra/job_logging=hydra_debug", "hydra/job_logging=disabled", "hydra/launcher=packed"])],
)
class TestIntegration(IntegrationTestSuite):
    pass
