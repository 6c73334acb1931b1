"""The config that a command line composes, or the folders in which it is looked for, are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runner.cli.command import Command
from runner.core.errors import Issue, nearest
from runner.core.paths import CONFIG_DIR


def config_issues(command: Command) -> Iterator[Issue]:
    """What makes composing impossible: folders and the primary config that are not there."""
    for flag, folder in (("--config-path", command.config_dir), ("--config-dir", command.extra_dir)):
        if folder and not folder.is_dir():
            yield Issue(flag, f"no folder {folder}", "")
            return
    if command.saved is None and not _is_there(command):
        message = f"no {command.config_name}.yaml in {command.config_dir}"
        yield Issue("--config-name", message, _instead(command))


def _is_there(command: Command) -> bool:
    """Whether there is a primary config. The packaged folder beside one of one's own has options alone."""
    return any((folder / f"{command.config_name}.yaml").is_file() for folder in _meant(command))


def _meant(command: Command) -> list[Path]:
    """The folders in which a primary config may be."""
    own = command.config_dir != CONFIG_DIR
    return [folder for folder in command.folders if not own or folder != CONFIG_DIR]


def _instead(command: Command) -> str:
    """Folders around the named one that have such a config, as those of a sweep's cells, or other names."""
    folder, name = command.config_dir, f"{command.config_name}.yaml"
    around = (folder.parent / name, *sorted(folder.glob(f"*/{name}")))
    found = [str(file.parent) for file in around if file.is_file()]
    if found:
        more = f" and {len(found) - 3} more" if found[3:] else ""
        return f"there is one in {', '.join(found[:3])}{more}"
    names = [file.stem for each in _meant(command) for file in each.glob("*.yaml") if file.is_file()]
    return nearest(command.config_name, names) if names else "--config-dir adds options to the packaged ones"
