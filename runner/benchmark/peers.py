"""The trainers that the runner is measured against, each as documented, with its best flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.settings import RunConfig
from runner.models.build import peft_config, quantization_config, training_arguments
from runner.models.model import choose_precision, device, find_base, load_model

if TYPE_CHECKING:
    from datasets import Dataset

# The fields of TRL's config that make it fast, by side. Of the compiled step Inductor's own default mode.
_FAST = {"optim": "adamw_torch_fused"}
FLAGS: dict[str, dict[str, Any]] = {
    "trl": _FAST,
    "trl-liger": {**_FAST, "use_liger_kernel": True},
    "trl-liger-compile": {**_FAST, "use_liger_kernel": True, "torch_compile": True},
    "unsloth": _FAST,
}
_SHOWN = ("bf16", "fp16", "optim", "use_liger_kernel", "torch_compile", "gradient_checkpointing")


def peer_trainer(
    side: str, config: RunConfig, rows: Dataset, folder: Path, held_out: Dataset | None = None
) -> Any:
    """The trainer of a side on ``rows``, with the model, adapter and trainer fields of ``config``.

    ``rows`` are those of ``rows.save_for_trl``, or as TRL's documentation has them. Files go into ``folder``.
    """
    arguments = _arguments(config, FLAGS[side], folder)
    if side == "unsloth":
        return _unsloth_trainer(config, arguments, rows, folder)
    precision, base = choose_precision(config), find_base(config.model)
    kind = _trainer_class(str(config.trainer["_target_"]), "prompt_ids" in rows.column_names)
    return kind(
        model=load_model(base, quantization_config(config, precision), precision.dtype, config.seed),
        args=arguments,
        processing_class=base.tokenizer,
        train_dataset=rows,
        eval_dataset=held_out,
        peft_config=peft_config(config, "CAUSAL_LM"),
    )


def shown_flags(trainer: Any) -> dict[str, Any]:
    """What of a trainer's arguments decides its speed."""
    return {name: getattr(trainer.args, name) for name in _SHOWN}


def _arguments(config: RunConfig, flags: dict[str, Any], folder: Path) -> Any:
    """TRL's config with the fields of ours and a side's ``flags``; mixed precision as TRL has it by default,
    also over a quantised base."""
    trainer = {**config.trainer, **flags}
    if not trainer.get("packing"):
        trainer["max_length"] = None if trainer.get("padding_free") else trainer.get("max_length", 1024)
    precision = choose_precision(config)
    if precision.name != "fp32":
        import torch

        named = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision.name]
        precision = dataclasses.replace(precision, autocast=named)
    config = dataclasses.replace(config, trainer=trainer)
    arguments, _ = training_arguments(config, precision, folder, device().type == "cuda")
    return arguments


def _trainer_class(target: str, tokenised: bool) -> Any:
    """TRL's trainer of a config class; for pairs of token ids one that takes them as they are, since TRL's
    own tokenises whatever it is given."""
    if target.endswith(".SFTConfig"):
        from trl.trainer.sft_trainer import SFTTrainer

        return SFTTrainer
    from trl.trainer.dpo_trainer import DPOTrainer

    class TokenisedDPOTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return TokenisedDPOTrainer if tokenised else DPOTrainer


def _unsloth_trainer(config: RunConfig, arguments: Any, rows: Dataset, folder: Path) -> Any:
    """Unsloth's model in TRL's trainer, which it patches, as its notebooks have it.

    It reads checkpoints only: random weights are written to one first.
    """
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    from trl.trainer.sft_trainer import SFTTrainer  # isort: skip  # patched by the import above

    base, precision = find_base(config.model), choose_precision(config)
    source = base.folder or folder / "base"
    if base.folder is None:
        load_model(base, None, precision.dtype, config.seed).save_pretrained(source)
        base.tokenizer.save_pretrained(source)
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(source),
        max_seq_length=config.trainer.get("max_length") or 1024,
        dtype=precision.dtype,
        load_in_4bit=bool(config.quantization.get("load_in_4bit")),
        load_in_8bit=bool(config.quantization.get("load_in_8bit")),
    )
    lora: Any = peft_config(config, "CAUSAL_LM")
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        target_modules=every if lora.target_modules == "all-linear" else lora.target_modules,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        use_rslora=lora.use_rslora,
        use_gradient_checkpointing="unsloth" if arguments.gradient_checkpointing else False,
        random_state=config.seed,
    )
    return SFTTrainer(model=model, args=arguments, processing_class=base.tokenizer, train_dataset=rows)
