"""What can be known of a base and its adapters before weights are loaded: every recipe checks it first."""

from __future__ import annotations

from typing import Any

from runner.config.adapters import adapters, check_base, check_rows, head_issues
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError
from runner.models.adapter_fit import check_adapters
from runner.models.base import Base
from runner.models.check_fp8 import check_layers
from runner.models.model import check_weights


def check_loading(
    config: RunConfig, base: Base, identity: dict[str, Any], classes: list[str] | None = None
) -> list[str]:
    """Check that the checkpoint is whole, and that the adapters are those of their runs and fit this base.

    ``identity`` are the base's digests, ``classes`` the outputs of a head that the base does not have.
    Returns warnings. Raises ``ConfigError``.
    """
    check_rows(config)
    if classes is None and (issues := head_issues(config)):
        raise ConfigError(issues)
    notes = check_base(config, identity)
    notes += check_layers(config, base, classes)
    return [*check_weights(base, classes), *notes, *check_adapters(base, adapters(config), classes)]
