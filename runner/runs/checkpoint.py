"""The one writer of checkpoints: each is complete and checksummed, or not there.

A checkpoint is written to a temporary folder. Then every file is flushed to the disk, a manifest with the
digest of each is written last, and the folder is renamed. A run that resumes from one verifies it first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.core.atomic import flush_to_disk, json_text, xxh3_of_file
from runner.core.errors import RunnerError

MANIFEST = "manifest.json"
TEMPORARY = ".writing"
_STATE = "trainer_state.json"  # the library's
# The library keeps its arguments as a pickle, which nothing reads again and which holds the hub's token.
_NOT_KEPT = ("training_args.bin",)


class NotSaved(RunnerError):
    """A checkpoint could not be written, for example because the disk is full."""


@contextmanager
def writing(folder: Path, name: str, facts: Callable[[], dict[str, Any]]) -> Iterator[Path]:
    """Write a checkpoint: the block fills ``name`` in the temporary folder that it is given.

    ``facts``, called at the end, is what the manifest says besides. Raises ``NotSaved`` when anything goes
    wrong; what was there before stays as it was.
    """
    temporary = folder / TEMPORARY
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        _seal(temporary / name, facts())
        _replace(temporary / name, folder / name)
    except Exception as error:
        if isinstance(error, RunnerError):
            raise
        last = newest(folder)
        kept = f"{last.name} is intact" if last else "there is no earlier one"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotSaved(f"{folder / name} could not be written, {kept}: {reason}{_space(folder)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None when every file is there, whole, and none besides."""
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"has no {MANIFEST}, which is written last"
    except (OSError, ValueError, KeyError, TypeError):
        return f"has an unreadable {MANIFEST}"
    found = _files(checkpoint)
    if missing := sorted(set(expected) - set(found)):
        return f"lacks {', '.join(missing)}"
    if foreign := sorted(set(found) - set(expected)):
        return f"holds {', '.join(foreign)}, which it was not written with"
    for name, facts in expected.items():
        size = found[name].stat().st_size
        if size != facts["bytes"]:
            return f"{name} has {size:,} of {facts['bytes']:,} bytes"
    with ThreadPoolExecutor() as pool:
        for name, digest in zip(
            expected, pool.map(xxh3_of_file, (found[name] for name in expected)), strict=True
        ):
            if digest != expected[name]["xxh3_128"]:
                return f"{name} is damaged, its digest differs from the manifest's"
    return None


def facts(checkpoint: Path) -> dict[str, Any]:
    """What the manifest of a verified checkpoint says besides its files."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["facts"]


def best_of(checkpoint: Path) -> Path | None:
    """The checkpoint that was the best so far when this one was written; it lies beside it, also when the run
    folder was moved since."""
    file = checkpoint / _STATE
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    best = saved.get("best_model_checkpoint")
    return checkpoint.with_name(Path(best).name) if best else None


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step after which ``checkpoint-N`` was written; 0 for any other folder."""
    number = checkpoint.name.partition("-")[2] if checkpoint else ""
    return int(number) if number.isdigit() else 0


def all_of(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest first, not verified."""
    return sorted(filter(step_of, folder.glob("checkpoint-*")), key=step_of, reverse=True)


def newest(folder: Path, damaged: list[tuple[Path, str]] | None = None) -> Path | None:
    """The newest intact checkpoint of a folder; the newer ones are added to ``damaged`` with the reason."""
    for path in all_of(folder):
        reason = verify(path)
        if reason is None:
            return path
        if damaged is not None:
            damaged.append((path, reason))
    return None


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    """Flush all files to the disk and write the manifest; digests are taken while the disk works."""
    for name in _NOT_KEPT:
        (folder / name).unlink(missing_ok=True)
    files = _files(folder)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(xxh3_of_file, files.values())
        flushed = pool.map(flush_to_disk, files.values())
        listed = {
            name: {"bytes": path.stat().st_size, "xxh3_128": digest}
            for (name, path), digest in zip(files.items(), digests, strict=True)
        }
        list(flushed)
    manifest = folder / MANIFEST
    manifest.write_text(json_text({"facts": facts, "files": listed}), encoding="utf-8")
    flush_to_disk(manifest)
    flush_to_disk(folder)


def _replace(new: Path, final: Path) -> None:
    """Rename, also over a checkpoint of the same step, which is only removed afterwards."""
    old = new.with_name("replaced")
    if final.exists():
        final.rename(old)
    new.rename(final)
    flush_to_disk(final.parent)


def _files(folder: Path) -> dict[str, Path]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in named.items() if name != MANIFEST}


def _space(folder: Path) -> str:
    """What is left on the disk, where that is little enough to be the reason."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f" ({free / 2**20:,.0f} MiB are free there)" if free < 2**30 else ""
