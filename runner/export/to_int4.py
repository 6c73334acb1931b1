"""``export=int4``: an NF4 folder that transformers loads as it is, compared with the model it was made of.

Rounding to 4 bits moves every model. How far it may move this one is measured on the untrained base,
quantised the same way and reading the same rows.
"""

from __future__ import annotations

import dataclasses
import gc
import shutil
from pathlib import Path
from typing import Any

import torch

from runner.config.settings import RunConfig
from runner.core import console
from runner.core.errors import ConfigError, RunnerError
from runner.evaluation.logit_kl import compare, read_texts
from runner.export.source import source_logits
from runner.models.model import Precision, device, find_base, keep_trainable, load_model
from runner.runs.run_folder import RunFolder

NAME = "model-nf4"
# How far NF4 may move a model (KL, nats a token): so many times as far as its untrained base, and a little,
# as eight rows are few. SmolLM2-135M with a trained adapter: 0.25, its base 0.43. With the rows of one matrix
# in another order: 0.60 in the middle of the model, 5 to 12 at its ends. Without what was trained: 2.2.
_TIMES_BASE, _FLOOR = 1.25, 0.02
_WITHOUT_BASE = 1.0


def export_int4(config: RunConfig, folder: RunFolder, source: Path, texts: list[list[int]]) -> list[Path]:
    """Write the model in ``source`` in 4 bits (NF4, double quantisation) to ``model-nf4/`` of the run folder.

    The folder stays only if the model loaded from it gives exactly the logits, on ``texts`` (token ids), of
    the one that was saved, and its KL divergence from the source is at most 1.25 times that of the
    untrained base in NF4 from the base, plus 0.02 nats a token. Raises ``RunnerError`` otherwise.
    """
    temporary, target = folder.path / f".{NAME}", folder.path / NAME
    try:
        with folder.timed("export"):
            saved = _save(temporary, source, texts)
        with folder.timed("verify_export"):
            loaded = _logits(_load(temporary), texts)
            expected, _ = source_logits(source, texts)
        if any(not torch.equal(ours, theirs) for ours, theirs in zip(saved, loaded, strict=True)):
            raise RunnerError(
                f"{NAME} gives other logits when it is loaded than when it was saved; it was not kept"
            )
        proof = compare(expected, loaded)
        del expected, loaded, saved
        with folder.timed("verify_export"):
            base_kl = _base_kl(config, folder.path / f".{NAME}-base", source, texts)
        allowed = _WITHOUT_BASE if base_kl is None else _TIMES_BASE * base_kl + _FLOOR
        against = _against(base_kl)
        if not proof.kl <= allowed:
            raise RunnerError(
                f"{NAME} does not answer like the model: KL {proof.kl:.3g} nats a token, more than "
                f"{allowed:.3g} ({against}); it was not kept"
            )
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    folder.metrics |= {
        "int4_kl": proof.kl,
        "int4_max_logit_difference": proof.max_difference,
        "int4_greedy_agreement": proof.greedy_agreement,
        "int4_bytes": sum(file.stat().st_size for file in target.iterdir()),
    }
    folder.record["int4"] = {
        "folder": NAME,
        "proof": dataclasses.asdict(proof),
        "base_kl": base_kl,
        "allowed_kl": allowed,
    }
    console.out.print(f"[bold]nf4[/]  KL {proof.kl:.3g} nats a token from the merged model; {against}")
    return [target]


def _against(base_kl: float | None) -> str:
    """What the bound is relative to, for the user."""
    if base_kl is None:
        return "the base cannot read these rows, so that the bound is absolute"
    return f"the untrained base loses {base_kl:.3g} in NF4"


def _base_kl(config: RunConfig, scratch: Path, source: Path, texts: list[list[int]]) -> float | None:
    """KL divergence (nats a token) of the untrained base in NF4 from itself; None if it lacks a token."""
    from transformers import AutoConfig

    try:
        base = find_base(config.model)
    except ConfigError:  # its tokenizer has tokens that its embedding lacks, or it is gone by now
        return None
    if max(map(max, texts)) >= base.config.get_text_config().vocab_size:
        return None  # the training has added tokens
    try:
        if base.folder is None:
            dtype: Any = AutoConfig.from_pretrained(source).dtype
            load_model(base, None, dtype, config.seed).save_pretrained(scratch)
        where = base.folder or scratch
        found = _logits(_load(where, quantization_config=_nf4()), texts)
        expected, _ = source_logits(where, texts)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return compare(expected, found).kl


def _nf4() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _save(target: Path, source: Path, texts: list[list[int]]) -> list[torch.Tensor]:
    """Quantise and save, and return the logits of what was saved."""
    from transformers import AutoTokenizer, GenerationConfig

    model = _load(source, quantization_config=_nf4())
    # saved before it has read anything: bitsandbytes repacks 4-bit weights in their first use on a CPU
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    if (source / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(source).save_pretrained(target)
    return _logits(model, texts)


def _load(folder: Path, **quantization: Any) -> Any:
    # a quantization_config of None would hide the folder's own
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()
    where = {"dtype": torch.bfloat16, "device_map": {"": device()}}
    return keep_trainable(AutoModelForCausalLM.from_pretrained(folder, **where, **quantization))


def _logits(model: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    found = read_texts(model, texts, Precision("bf16", torch.bfloat16, None))
    del model
    gc.collect()
    return found
