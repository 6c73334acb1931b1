"""The kinds of GGUF file: which can be written here, what each tensor becomes, how exact the kind must be."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

# Kinds whose blocks the gguf package can write.
WRITTEN = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
# Kinds for which llama.cpp has to be called; its remaining file types are for models made in them.
QUANTIZED_BY_LLAMA_CPP = tuple(
    name
    for name in (entry.name.removeprefix("MOSTLY_").lower() for entry in LlamaFileType)
    if re.match(r"i?q\d_", name) and name not in (*WRITTEN, "q1_0")
)
KINDS = (*WRITTEN, *QUANTIZED_BY_LLAMA_CPP)

# Mean KL divergence, in nats a token, that a file's model may have from its source; the quantised kinds by
# their bits. On SmolLM2-135M merged with a trained adapter, small and so more easily disturbed than larger
# models, it was 0.0018 at most for q8_0, 0.34 for 5 bits and 0.35 for q4_0 (927 tokens). A file that is not
# what it should be had 1.2 (q4_1 made from a base that once was q4_1 itself: the same rounding takes away all
# that was trained) and 3.3 (queries and keys left in their own order).
_MAX_KL = {"f32": 1e-6, "f16": 1e-4, "bf16": 2e-3, "8": 0.01, "6": 0.1, "5": 0.5, "4": 1.0}
_MAX_KL_BELOW = 2.0


def tensor_type(kind: str, name: str, shape: Sequence[int], tied: bool) -> GGMLQuantizationType:
    """Type of a tensor, by its name and shape (rows last), in a file of this kind.

    As llama.cpp does it: vectors stay in float32; what projects to the vocabulary (also the embeddings where
    these are ``tied`` to it) keeps 8 bits, since its errors go straight into the logits; a matrix whose rows
    cannot be cut into blocks becomes float16.
    """
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[kind.upper()]
    block, _ = GGML_QUANT_SIZES[wanted]
    if block > 1 and name == ("token_embd.weight" if tied else "output.weight"):
        wanted = GGMLQuantizationType.Q8_0
    return GGMLQuantizationType.F16 if shape[-1] % block else wanted


def max_kl(kind: str) -> float:
    """Mean KL divergence, in nats a token, that the model of such a file may have from its source."""
    bits = re.search(r"q(\d)", kind)
    return _MAX_KL.get(bits[1] if bits else kind, _MAX_KL_BELOW)
