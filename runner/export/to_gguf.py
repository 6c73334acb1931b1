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
    from runner.export.gguf.kinds import WRITTEN

    checkout, issues = config.gguf.llama_cpp, list(_kind_issues(config.gguf.kind))
    if issues:
        raise ConfigError(issues)
    kinds = kinds_of(config)
    if checkout:
        for kind in kinds:
            check_checkout(checkout, kind)
        return
    issues = []
    for kind in [kind for kind in kinds if kind not in WRITTEN]:
        message = f"needs llama.cpp; without it: {', '.join(WRITTEN)}"
        hint = "gguf.llama_cpp=FOLDER, a checkout of llama.cpp with llama-quantize built"
        issues.append(Issue(f"gguf.kind={kind}", message, hint))
    hint = "gguf.llama_cpp=FOLDER, a checkout of llama.cpp, may be able to"
    issues += [Issue("export=gguf", message, hint) for message in _obstacles(base.config, base.tokenizer)]
    if issues:
        raise ConfigError(issues)


def kinds_of(config: RunConfig) -> list[str]:
    """The kinds of ``gguf.kind``, in lower case, each once."""
    given = config.gguf.kind
    return list(dict.fromkeys(kind.lower() for kind in (given if isinstance(given, list) else [given])))


def _kind_issues(given: Any) -> Iterator[Issue]:
    from runner.export.gguf.kinds import KINDS

    if isinstance(given, list) and not given:
        yield Issue("gguf.kind=[]", "names no kind", f"allowed: {', '.join(KINDS)}")
    for kind in given if isinstance(given, list) else [given]:
        if not isinstance(kind, str) or kind.lower() not in KINDS:
            yield Issue(
                f"gguf.kind={kind}",
                "is not a kind of GGUF file",
                nearest(str(kind).lower(), KINDS, limit=len(KINDS)),
            )


def export_gguf(config: RunConfig, folder: RunFolder, source: Path, texts: list[list[int]]) -> list[Path]:
    """Write the model in ``source`` as ``model-KIND.gguf`` into the run folder, verify and return each file.

    A file stays only if transformers, reading it, gives nearly the logits of the source on ``texts`` (token
    ids) and the same tokens. Raises ``RunnerError`` otherwise. Of several the metrics are those of the file
    that is furthest from the source, and the size that of all.
    """
    files = [folder.path / f"model-{kind.upper()}.gguf" for kind in kinds_of(config)]
    records, proofs = [], []
    for kind, file in zip(kinds_of(config), files, strict=True):
        record, proof = _export_one(config, folder, source, texts, kind, file)
        records.append(record)
        proofs += [proof] if proof is not None else []
    folder.metrics["gguf_bytes"] = sum(file.stat().st_size for file in files)
    folder.record["gguf"] = records if isinstance(config.gguf.kind, list) else records[0]
    if proofs:
        proof = max(proofs, key=lambda each: each.kl)
        folder.metrics |= {
            "gguf_kl": proof.kl,
            "gguf_max_logit_difference": proof.max_difference,
            "gguf_greedy_agreement": proof.greedy_agreement,
        }
    return files


def _export_one(
    config: RunConfig, folder: RunFolder, source: Path, texts: list[list[int]], kind: str, file: Path
) -> tuple[dict[str, Any], Fidelity | None]:
    """One file, with what ``run.json`` keeps of it, and how near to the source it is, where that is known."""
    temporary = folder.path / f".{file.name}"
    try:
        with folder.timed("export"):
            notes, own = _write(config, temporary, source, kind)
        with folder.timed("verify_export"):
            proof, warnings = _verify(temporary, source, texts, kind, own)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
    record: dict[str, Any] = {"file": file.name, "kind": kind}
    record["written_by"] = "runner" if own else "llama.cpp"
    if proof is not None:
        record["proof"] = dataclasses.asdict(proof)
    for note in [*notes, *warnings]:
        folder.notes.append(f"{file.name}: {note}")
        console.warn(folder.notes[-1])
    return record, proof


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
