"""Fields of library classes that are not set under their own name, and where instead."""

from __future__ import annotations

# Fields by which the library would share a run among processes itself.
_SEVERAL_PROCESSES = (
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "parallelism_config",
    "local_rank",
    "ddp_backend",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_static_graph",
    "ddp_timeout",
)

# Fields of a library class that another key of the runner decides, so that no value stands in two places.
RESERVED = {
    "trainer.output_dir": "set output_dir",
    "trainer.seed": "set seed",
    "trainer.data_seed": "set seed",
    "trainer.run_name": "it is the name of the run folder",
    "trainer.model_init_kwargs": "set the keys of model",
    "trainer.trust_remote_code": "set model.trust_remote_code",
    "trainer.chat_template_path": "set template.chat_template",
    "trainer.resume_from_checkpoint": "set resume",
    "trainer.hub_token": "set HF_TOKEN in the environment: a config is kept and shown",
    "trainer.push_to_hub": "set push_to",
    "trainer.hub_model_id": "set push_to",
    "trainer.assistant_only_loss": "set data.train_on",
    "trainer.completion_only_loss": "set data.train_on",
    "trainer.dataset_text_field": "set data.columns",
    "trainer.dataset_kwargs": "the runner prepares the rows",
    "trainer.eos_token": "set template.stop",
    "trainer.pad_token": "the runner chooses it",
    "trainer.padding_value": "the runner chooses it",
    "trainer.max_completion_length": "set trainer.max_length",
    "trainer.is_encoder_decoder": "leave it out: the model says so",
    "trainer.generate_during_eval": "set generation.samples",
    "trainer.hub_private_repo": "set push_to",
    "trainer.hub_strategy": "set push_to",
    "trainer.hub_always_push": "set push_to",
    "trainer.hub_revision": "set push_to",
    "trainer.use_cpu": "CUDA_VISIBLE_DEVICES= in front of the command hides all GPUs",
    "trainer.disable_tqdm": "leave it out: the runner shows its own progress",
    "trainer.dataloader_pin_memory": "leave it out: memory is pinned where there is CUDA",
    "trainer.include_for_metrics": "set data.metric",
    "trainer.batch_eval_metrics": "set data.metric",
    **{
        f"trainer.{name}": "choose parallel=ddp, fsdp2, zero2 or zero3, a run on several GPUs"
        for name in _SEVERAL_PROCESSES
    },
    "trainer.do_train": "set recipe",
    "trainer.do_eval": "set recipe",
    "trainer.do_predict": "set recipe",
    "lora.base_model_name_or_path": "set model.path",
    "lora.revision": "set model.revision",
    "lora.peft_type": "set lora._target_, or choose lora=...",
    "lora.inference_mode": "set recipe",
    "lora.peft_version": "leave it out: it is the installed one",
    "lora.auto_mapping": "leave it out: PEFT would import the module that it names",
    "lora.megatron_config": "leave it out: PEFT would import a module that it names",
    "lora.megatron_core": "leave it out: PEFT would import the module that it names",
}
