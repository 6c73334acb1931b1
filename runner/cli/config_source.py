"""Config files as Hydra reads them, each checked first for how much it stands for (``core.yaml_reader``)."""

from __future__ import annotations

import copy
import io
from functools import lru_cache
from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from runner.core.yaml_reader import check_yaml, read_text, refusal


class CheckedFileSource(FileConfigSource):
    """Hydra's ``file://``, which takes plain files of bounded size, with or without a byte order mark."""

    def load_config(self, config_path: str) -> ConfigResult:
        """What a file of the config folder holds. Raises ``yaml.YAMLError`` or Hydra's errors."""
        file = Path(self.path, self._normalize_file_name(config_path))
        if not file.exists():
            raise ConfigLoadError(f"Config not found : {file}")
        text = read_text(file)
        try:
            header = ConfigSource._get_header_dict(text[:512])
        except ValueError as error:
            raise refusal(file, str(error)) from error
        return ConfigResult(
            config=load_text(text, file),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=header,
        )


# When Hydra looks for plugins again it asks by this name whether a scheme is taken by the same source.
CheckedFileSource.__name__ = FileConfigSource.__name__


def load_text(text: str, file: Path) -> DictConfig:
    """The config of a file's text, which the caller may change. Raises ``yaml.YAMLError``.

    A sweep composes the same files for every cell, and a copy takes a fifth of the time of reading.
    """
    return copy.deepcopy(_parsed(text, file))


@lru_cache(maxsize=256)
def _parsed(text: str, file: Path) -> DictConfig:
    check_yaml(text, str(file))
    stream = io.StringIO(text)
    stream.name = str(file)  # type: ignore[misc]  # for the marks of errors
    try:
        config = OmegaConf.load(stream)
    except (ValueError, OSError) as error:
        raise refusal(file, str(error).splitlines()[0]) from error
    if not isinstance(config, DictConfig):
        raise refusal(file, "not a mapping of keys")
    return config


def check_config_files() -> None:
    """From now on Hydra reads files of config folders through ``CheckedFileSource``."""
    Plugins.instance()  # registers Hydra's own, once
    SourcesRegistry.instance().types[CheckedFileSource.scheme()] = CheckedFileSource
