"""The logits of the model that an export is made from: what the exported one is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, logging

from runner.core import environment
from runner.evaluation.logit_kl import read_texts
from runner.models.model import Precision, device

_WEIGHTS = ("*.safetensors", "*.bin")


def source_logits(source: Path, texts: list[list[int]]) -> tuple[list[torch.Tensor], Precision]:
    """Logits of the model in ``source``, as ``read_texts`` gives them, and the number format they are in.

    In float32 where that fits twice into memory, so that rounding does not hide what the export did.
    """
    logging.disable_progress_bar()
    where = device()
    stored = sum(file.stat().st_size for kind in _WEIGHTS for file in source.glob(kind))
    free = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else environment.available_memory()
    roomy = 2 * 2 * stored < free  # the weights are mostly stored in 16 bits
    precision = Precision("fp32", torch.float32, None) if roomy else Precision("bf16", torch.bfloat16, None)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=precision.dtype)
    return read_texts(model.to(where), texts, precision), precision
