"""The hyper-parameter rules that the field teaches, each with its source, and where a config departs from
them.

A departure is no error: the bands are where published recipes lie, and a sweep may find better outside.
"""

from __future__ import annotations

import math

from runner.config.settings import RunConfig
from runner.rules import measures, sources
from runner.rules.bands import Band, Departure, Facts, Rule, number
from runner.rules.scale import SCALE

_SUPERVISED = ("sft", "classify")
_FROM_1B, _FROM_30B = (1e9, math.inf), (30e9, math.inf)
_MANY = (2000, math.inf)  # rows, twice what LIMA has


def departures(
    config: RunConfig, rows: int | None = None, steps: int | None = None, parameters: int | None = None
) -> list[Departure]:
    """Where a config departs from what is usual, in the order of ``RULES``.

    ``rows`` are the training rows, ``steps`` the optimizer steps, ``parameters`` those of the model. Where
    one is not known, a rule that needs it says nothing, or takes its widest band. Nothing is loaded.
    """
    facts = Facts(config, rows, steps, parameters)
    return [found for rule in RULES if (found := rule.departure(facts))]


RULES = (
    Rule(
        "learning rate",
        "trainer.learning_rate",
        "Too low learns little, too high forgets or diverges; LoRA wants ten times that of full fine-tuning.",
        (
            Band(1e-5, 2e-4, 1e-4, f"{sources.QLORA}, table 9", _SUPERVISED, ("lora",), _FROM_30B),
            Band(
                *(1e-5, 5e-4, 2e-4, f"{sources.QLORA}, table 9; {sources.BIDERMAN}"),
                *(_SUPERVISED, ("lora",), _FROM_1B),
            ),
            Band(1e-5, 2e-3, 2e-4, f"{sources.REGRET} (more for smaller models)", _SUPERVISED, ("lora",)),
            Band(
                *(1e-6, 5e-5, 2e-5, f"{sources.TRL_PEFT}; {sources.LLAMA2}, section 3.1 (2e-5)"),
                *(_SUPERVISED, ("full",), _FROM_1B),
            ),
            Band(1e-6, 1e-3, 2e-5, f"{sources.SMOLLM} (1e-3)", _SUPERVISED, ("full",)),
            Band(1e-6, 5e-5, 5e-6, sources.TRL_PEFT, ("dpo",), ("lora",)),
            Band(1e-7, 5e-6, 5e-7, f"{sources.TRL_PEFT}; {sources.DPO} (1e-6)", ("dpo",), ("full",)),
            Band(5e-7, 5e-5, 5e-6, f"{sources.TRL_KTO}; {sources.TRL_PEFT}", ("kto",), ("lora",)),
            Band(5e-7, 5e-6, 1e-6, sources.TRL_KTO, ("kto",), ("full",)),
            Band(5e-6, 1e-4, 8e-5, f"{sources.TRL_ORPO} (8e-5)", ("orpo",), ("lora",)),
            Band(1e-6, 1e-5, 8e-6, f"{sources.TRL_ORPO} (8e-6)", ("orpo",), ("full",)),
            Band(1e-5, 5e-4, 1e-4, f"{sources.TRL_REWARD} (1e-4)", ("reward",), ("lora",)),
            Band(1e-6, 5e-5, 1e-5, f"{sources.LLAMA2}, section 3.2.2", ("reward",), ("full",)),
            Band(1e-3, 1e-2, 3e-3, f"{sources.IA3} (3e-3)", (), ("ia3",)),
            Band(1e-3, 0.3, 2e-2, f"{sources.TRL_PEFT}; {sources.PROMPT} (0.3)", (), ("prompt",)),
        ),
        measures.learning_rate,
        measures.typical("trainer.learning_rate"),
    ),
    SCALE,
    Rule(
        "adapted layers",
        "lora.target_modules",
        "On attention alone LoRA learns less than on all linear layers, with equal parameters too.",
        (Band(1, 1, 1, f"{sources.QLORA}, section 4; {sources.REGRET}", (), ("lora",)),),
        measures.reach,
        lambda facts, band: "lora.target_modules=all-linear",
        name=lambda value: "all linear layers" if value else "attention only",
    ),
    Rule(
        "LoRA dropout",
        "lora.lora_dropout",
        "It takes from what an adapter learns, and large models need least of it.",
        (
            Band(0, 0.05, 0.05, f"{sources.QLORA}, appendix B", (), ("lora",), _FROM_30B),
            Band(0, 0.1, 0.05, f"{sources.QLORA}, appendix B", (), ("lora",)),
        ),
        measures.field("lora.lora_dropout"),
        measures.typical("lora.lora_dropout"),
    ),
    Rule(
        "epochs",
        "trainer.num_train_epochs",
        "Rows that are seen often are learnt by heart; a thousand rows bear more epochs than many.",
        (
            Band(
                *(0, 3, 2, f"{sources.LLAMA2}, section 3.1 (2); {sources.TULU} (2)"),
                recipes=("sft",),
                rows=_MANY,
            ),
            Band(0, 15, 3, f"{sources.LIMA} (15 epochs of 1,000 rows)", ("sft",)),
            Band(0, 3, 1, f"{sources.ZEPHYR}; {sources.TULU} (1)", ("dpo",)),
            Band(0, 1, 1, f"{sources.LLAMA2}, section 3.2.2", ("reward",)),
        ),
        measures.epochs,
        measures.follow_epochs,
    ),
    Rule(
        "warmup",
        "trainer.warmup_steps",
        "Its steps train at less than the learning rate, and a tenth of all is the most that is published.",
        (Band(0, 0.1, 0.03, f"{sources.TULU} (3% for SFT, 10% for DPO)"),),
        measures.warmup,
        measures.typical("trainer.warmup_steps"),
        lambda facts, share: f"{share:.0%} of the steps",
        lambda share: f"{share:.0%}",
    ),
    Rule(
        "effective batch",
        "trainer.gradient_accumulation_steps",
        "Few rows a step are slow and noisy, many leave few steps, and LoRA bears large batches less well.",
        (
            Band(16, 128, 16, sources.TRL_KTO, ("kto",)),
            Band(
                *(8, 128, 16, f"{sources.QLORA}, table 9 (16 to 64); {sources.TULU} (128)"),
                rows=_MANY,
            ),
            Band(1, 128, 16, f"{sources.SMALL_BATCHES} (1 and more); {sources.TULU} (128)"),
        ),
        measures.batch,
        measures.follow_batch,
        lambda facts, rows: f"{number(rows)} rows a step",
    ),
    Rule(
        "weight decay",
        "trainer.weight_decay",
        "It pulls what is trained towards zero, in a short run to no use.",
        (Band(0, 0.1, 0, f"{sources.LLAMA2}, section 3.1 (0.1); {sources.TULU} (0)"),),
        measures.field("trainer.weight_decay"),
        measures.typical("trainer.weight_decay"),
    ),
    Rule(
        "gradient clipping",
        "trainer.max_grad_norm",
        "One odd batch can undo a run without it, which 0 means.",
        (Band(0.3, 1, 1, f"{sources.QLORA}, appendix B (0.3); {sources.LLAMA2}, section 2.2 (1)"),),
        measures.field("trainer.max_grad_norm"),
        measures.typical("trainer.max_grad_norm"),
    ),
    Rule(
        "beta of DPO",
        "trainer.beta",
        "A small one lets the policy leave its reference, a large one holds it there.",
        (Band(0.01, 0.5, 0.1, f"{sources.DPO} (0.1, 0.5); {sources.ZEPHYR_RECIPE} (0.01)", ("dpo",)),),
        measures.beta,
        measures.typical("trainer.beta"),
    ),
    Rule(
        "NEFTune noise",
        "trainer.neftune_noise_alpha",
        "The noise on the embeddings was tuned between these.",
        (Band(5, 15, 5, f"{sources.NEFTUNE} (5, 10, 15)", ("sft",)),),
        measures.noise,
        measures.typical("trainer.neftune_noise_alpha"),
    ),
)
