"""The rooms of the package: each has its place among the layers that import-linter checks, none is a hall."""

import tomllib

from runner.core.paths import PACKAGE

ROOT = PACKAGE.parent
MOST_FILES = 20


def test_every_room_is_a_layer_of_the_import_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (rooms,) = [contract for contract in settings["contracts"] if contract["type"] == "layers"]
    layers = {name.strip(" ()") for line in rooms["layers"] for name in line.split("|")}
    folders = {file.parent.relative_to(PACKAGE).parts[0] for file in PACKAGE.glob("*/*.py")}
    expected = {f"runner.{name}" for name in folders} | {"runner.__main__", "runner.plugins", "recipes"}
    assert layers == expected


def test_no_folder_has_more_files_than_can_be_seen_at_once() -> None:
    folders = {file.parent for root in ("runner", "recipes", "tests") for file in (ROOT / root).rglob("*.py")}
    crowded = {folder: len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in crowded.items() if count > MOST_FILES} == {}
