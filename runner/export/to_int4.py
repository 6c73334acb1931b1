"""``export=int4``: an NF4 folder that transformers loads as it is, compared with the model it was made of."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from pathlib import Path
from typing import Any

import torch

from runner.config.settings import RunConfig
from runner.core import console
from runner.core.errors import RunnerError
from runner.evaluation.logit_kl import compare, read_texts
from runner.export.source import source_logits
from runner.models.model import Precision, device
from runner.runs.run_folder import RunFolder

NAME = "model-nf4"
# Nats a token, as for 4-bit GGUF files: SmolLM2-135M merged with a trained adapter is at 0.27. Weights that
# were in NF4 once may be rounded back to what they were before the training: that is above 1.
_MAX_KL = 1.0


def export_int4(config: RunConfig, folder: RunFolder, source: Path, texts: list[list[int]]) -> None:
    """Write the model in ``source`` in 4 bits (NF4, double quantisation) to ``model-nf4/`` in the run folder.

    The folder stays only if the model loaded from it gives exactly the logits, on ``texts`` (token ids), of
    the one that was saved, and nearly those of the source. Raises ``RunnerError`` otherwise.
    """
    aside, target = folder.path / f".{NAME}", folder.path / NAME
    try:
        with folder.timed("export"):
            saved = _save(aside, source, texts)
        with folder.timed("verify_export"):
            loaded = _logits(_load(aside), texts)
            expected, _ = source_logits(source, texts)
        if any(not torch.equal(ours, theirs) for ours, theirs in zip(saved, loaded, strict=True)):
            raise RunnerError(
                f"{NAME} gives other logits when it is loaded than when it was saved; it was not kept"
            )
        proof = compare(expected, loaded)
        if not proof.kl <= _MAX_KL:
            raise RunnerError(
                f"{NAME} does not answer like the model: KL {proof.kl:.3g} nats a token, "
                f"more than {_MAX_KL:g}; it was not kept"
            )
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    folder.metrics |= {
        "int4_kl": proof.kl,
        "int4_max_logit_difference": proof.max_difference,
        "int4_greedy_agreement": proof.greedy_agreement,
        "int4_bytes": sum(file.stat().st_size for file in target.iterdir()),
    }
    folder.record["int4"] = {"folder": NAME, "proof": dataclasses.asdict(proof)}
    console.out.print(f"[bold]nf4[/]  KL {proof.kl:.3g} nats a token from the merged model")


def _save(target: Path, source: Path, texts: list[list[int]]) -> list[torch.Tensor]:
    """Quantise and save, and return the logits of what was saved."""
    from transformers import AutoTokenizer, BitsAndBytesConfig, GenerationConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = _load(source, quantization_config=quantization)
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
    return AutoModelForCausalLM.from_pretrained(folder, **where, **quantization)


def _logits(model: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    found = read_texts(model, texts, Precision("bf16", torch.bfloat16, None))
    del model
    gc.collect()
    return found
