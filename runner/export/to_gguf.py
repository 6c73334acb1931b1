"""``export=gguf``: one file for llama.cpp and what builds on it, read back and compared before it is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.config.settings import RunConfig
from runner.core import console
from runner.core.errors import ConfigError, Issue, RunnerError, nearest
from runner.evaluation.logit_kl import Fidelity, compare
from runner.export.gguf.llama_cpp import check_checkout, write_with_llama_cpp
from runner.models.model import Base
from runner.runs.run_folder import RunFolder


def check_gguf(config: RunConfig, base: Base) -> None:
    """Check the kind and whether this model can be written in it. Raises ``ConfigError``."""
    from runner.export.gguf.kinds import KINDS, WRITTEN

    kind, checkout = config.gguf.kind.lower(), config.gguf.llama_cpp
    if kind not in KINDS:
        hint = nearest(kind, KINDS, limit=len(KINDS))
        raise ConfigError(Issue(f"gguf.kind={config.gguf.kind}", "is not a kind of GGUF file", hint))
    if checkout:
        check_checkout(checkout, kind)
        return
    issues = []
    if kind not in WRITTEN:
        message = f"needs llama.cpp; without it: {', '.join(WRITTEN)}"
        hint = "gguf.llama_cpp=FOLDER, a checkout of llama.cpp with llama-quantize built"
        issues.append(Issue(f"gguf.kind={config.gguf.kind}", message, hint))
    hint = "gguf.llama_cpp=FOLDER, a checkout of llama.cpp, may be able to"
    issues += [Issue("export=gguf", message, hint) for message in _obstacles(base.config, base.tokenizer)]
    if issues:
        raise ConfigError(issues)


def export_gguf(config: RunConfig, folder: RunFolder, source: Path, texts: list[list[int]]) -> None:
    """Write the model in ``source`` as ``model-KIND.gguf`` into the run folder, and verify it.

    The file stays only if transformers, reading it, gives nearly the logits of the source on ``texts``
    (token ids) and the same tokens. Raises ``RunnerError`` otherwise.
    """
    kind = config.gguf.kind.lower()
    file = folder.path / f"model-{kind.upper()}.gguf"
    temporary = folder.path / f".{file.name}"
    try:
        with folder.timed("export"):
            notes, own = _write(config, temporary, source, kind)
        with folder.timed("verify_export"):
            proof, warnings = _verify(temporary, source, texts, kind, own)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
    folder.metrics["gguf_bytes"] = file.stat().st_size
    folder.record["gguf"] = {"file": file.name, "kind": kind, "written_by": "runner" if own else "llama.cpp"}
    if proof is not None:
        folder.metrics |= {
            "gguf_kl": proof.kl,
            "gguf_max_logit_difference": proof.max_difference,
            "gguf_greedy_agreement": proof.greedy_agreement,
        }
        folder.record["gguf"] |= {"proof": dataclasses.asdict(proof)}
    for note in [*notes, *warnings]:
        folder.notes.append(f"{file.name}: {note}")
        console.warn(folder.notes[-1])


def _obstacles(model: Any, tokenizer: Any) -> Iterator[str]:
    from runner.export.gguf import architecture as gguf_architecture
    from runner.export.gguf import tokenizer as gguf_tokenizer

    yield from gguf_architecture.obstacles(model)
    yield from gguf_tokenizer.obstacles(tokenizer, model.get_text_config().vocab_size)


def _write(config: RunConfig, file: Path, source: Path, kind: str) -> tuple[list[str], bool]:
    """Warnings, and whether the file was written here rather than by llama.cpp."""
    from transformers import AutoConfig, AutoTokenizer

    from runner.export.gguf.kinds import WRITTEN
    from runner.export.gguf.writer import write_gguf

    model, tokenizer = AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    obstacles = list(_obstacles(model, tokenizer))
    if kind in WRITTEN and not obstacles:
        name = config.model.path or config.model.architecture
        title = f"{Path(str(name).partition('#')[0]).name}, {config.recipe}d"
        return write_gguf(file, source, model, tokenizer, kind, title), True
    if not config.gguf.llama_cpp:  # the merge has made something else of the base than was checked
        raise RunnerError(f"no GGUF file can be written: {'; '.join(obstacles)}")
    write_with_llama_cpp(file, source, config.gguf.llama_cpp, kind)
    return [], False


def _verify(
    file: Path, source: Path, texts: list[list[int]], kind: str, own: bool
) -> tuple[Fidelity | None, list[str]]:
    """How near the file's model is to its source, and warnings. Raises ``RunnerError`` for one too far off.

    A file of llama.cpp's that transformers cannot read is kept unverified, with a warning.
    """
    from transformers import AutoConfig, AutoTokenizer

    from runner.export.gguf.kinds import max_kl
    from runner.export.gguf.verify import check_tokenizer, read_back
    from runner.export.source import source_logits

    try:
        warnings = check_tokenizer(file, AutoTokenizer.from_pretrained(source), texts)
        expected, precision = source_logits(source, texts)
        found, unread = read_back(file, AutoConfig.from_pretrained(source), texts, precision)
    except (ValueError, KeyError, NotImplementedError, AttributeError) as error:
        if own:
            raise RunnerError(f"transformers cannot read the file that was written: {error}") from error
        return None, [
            f"transformers cannot read it, so that it is not verified ({str(error).splitlines()[0]})"
        ]
    proof, allowed = compare(expected, found), max_kl(kind)
    if not proof.kl <= allowed:
        raise RunnerError(
            f"the {kind} file does not answer like the model: KL {proof.kl:.3g} nats a token, "
            f"more than the {allowed:g} of its kind; it was not kept. gguf.kind=q8_0 is more exact"
        )
    return proof, warnings + unread
