"""Common GPUs: about what memory CUDA has of them, and the published rates that bound a training step."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Card:
    """A GPU: its name, memory in bytes, and if known its dense rate of products of 16-bit numbers with sums
    in float32 (operations a second) and its memory's bandwidth (bytes a second).

    ``bf16`` says that it computes in bfloat16, ``fp8`` in e4m3 (compute capability 8.0 and 8.9).
    """

    name: str
    memory: int
    rate: float | None = None
    bandwidth: float | None = None
    bf16: bool = True
    fp8: bool = False

    @property
    def gib(self) -> float:
        """Its memory in GiB."""
        return self.memory / GIB


# Approximate: memory is what nvidia-smi shows in all, in MiB, which differs by a few per cent with ECC and
# firmware; rates are TFLOP/s of the tensor cores without sparsity (of GeForce cards with float32 sums, half
# of what they reach with sums in float16) and GB/s, as public tables repeat the maker's. A card may be
# throttled far below; recipe=doctor measures the one that is here.
_TABLE = """
t4             15360   65    320  fp16
v100-16        16384  125    900  fp16
v100           32768  125    900  fp16
a10            23028  125    600
a30            24576  165    933
a40            46068  150    696
a100-40        40960  312   1555
a100           81920  312   2039
a6000          49140  155    768
l4             23034  121    300  fp8
l40s           46068  362    864  fp8
rtx6000ada     49140  364    960  fp8
h100-pcie      81559  756   2000  fp8
h100           81559  989   3350  fp8
h200          143771  989   4800  fp8
b200          183359 2250   8000  fp8
rtx3060        12288   25    360
rtx3080        10240   60    760
rtx3090        24576   71    936
rtx4060ti      16380   44    288  fp8
rtx4070        12282   58    504  fp8
rtx4080        16376   97    717  fp8
rtx4090        24564  165   1008  fp8
rtx5090        32607  210   1792  fp8
"""

SIZES = (8, 12, 16, 24, 40, 80, 141)  # GB of cards that a table without a GPU shows
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(gib|gb|g)?", re.IGNORECASE)
# Words of a full name that are no part of the model's: of the maker, of the form, of the memory.
_OTHER_WORDS = re.compile(
    r"nvidia|geforce|tesla|quadro|generation|laptop|gpu|sxm\d*|nvl|hbm\d*e?|pcie|\d+gb|\d+g"
)


def _cards() -> dict[str, Card]:
    found = {}
    for line in _TABLE.split("\n"):
        if not line:
            continue
        name, memory, rate, bandwidth, *more = line.split()
        found[name] = Card(
            name,
            int(memory) * MIB,
            float(rate) * 1e12,
            float(bandwidth) * 1e9,
            "fp16" not in more,
            "fp8" in more,
        )
    return found


CARDS = _cards()


def find_card(text: str) -> Card | None:
    """The card of a name, as of this table or as CUDA says it, or of a size such as ``24GiB``; None for
    others, and for a size of nothing."""
    if size := _SIZE.fullmatch(text.strip()):
        return sized(float(size[1])) if float(size[1]) > 0 else None
    names = {name.replace("-", ""): card for name, card in CARDS.items()}
    words = re.findall(r"[a-z0-9]+", text.lower())
    base = "".join(word for word in words if not _OTHER_WORDS.fullmatch(word))
    memory = next((word.rstrip("gb") for word in words if re.fullmatch(r"\d+gb?", word)), "")
    form = "pcie" if "pcie" in words else ""
    return (memory and names.get(base + memory)) or names.get(base + form) or names.get(base)


def sized(gib: float) -> Card:
    """A card of which only the memory is known."""
    return Card(f"{gib:g} GiB", round(gib * GIB))
