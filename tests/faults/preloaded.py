"""What the processes of ``starts.start`` share, done once before they begin: the imports of a run of the tiny
model, and the parsing of the libraries' and of this project's code."""

import contextlib
import gc
import importlib

from helpers.command import TINY, one
from runner.core.code_digest import code_digest
from runner.core.paths import PACKAGE

for name in (
    "recipes.dpo",
    "recipes.run",
    "recipes.sft",
    "runner.packed.train_pack",
    "runner.packed.trainer",
    "runner.reports.run_report",
    "runner.speed.shards",
    "runner.training.dpo",
    "runner.training.sft",
    "transformers.models.llama.modeling_llama",
    "detect_secrets",
):
    importlib.import_module(name)
with contextlib.suppress(ModuleNotFoundError):  # not installed everywhere
    importlib.import_module("deepspeed")
one(*TINY)
code_digest([PACKAGE / "data"])
gc.collect()
gc.freeze()  # or each trainer's collection of garbage goes through all of it, 0.9 s
