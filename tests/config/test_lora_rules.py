"""What PEFT takes in ``lora`` and a run would train without, or fail on, is refused by its key."""

import pytest

from helpers.command import issues, one

ADALORA = "lora=adalora"
BLOCKS = "lora.use_bdlora={target_modules_bd_a: [q_proj], nblocks: 2, match_strict: false}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("lora.init_lora_weights=eva", "eva wants PEFT to see the rows first (initialize_lora_eva_weights)"),
        ("lora.init_lora_weights=corda", "(preprocess_corda)"),
        ("lora.init_lora_weights=pissa_niter_x", "'pissa_niter_x' is not allowed"),
        ("lora.eva_config={rho: 1.5}", "lora.eva_config is of an initialisation that reads the rows"),
        ("lora.corda_config={verbose: true}", "lora.corda_config"),
        ("lora.lora_ga_config={scale: unit}", "lora.lora_ga_config"),
        ("lora.loftq_config={loftq_bits: 4}", "has no effect with lora.init_lora_weights=True"),
        ("lora.qalora_group_size=8", "has no effect with lora.use_qalora=False"),
        ("lora.arrow_config={top_k: 2}", "a run trains one"),
        ("lora.kasa_config={beta: 0.1}", "cuts the base's own weights"),
        ("lora.monteclora_config={num_samples: 4}", "a term in the loss"),
        ("lora.layer_replication=[[0,2],[1,2]]", "lora.layer_replication makes a base of other layers"),
        (
            ("lora=ia3", "lora._target_=peft.PolyConfig"),
            "lora._target_=peft.PolyConfig wants the number of a task",
        ),
        ((ADALORA, "lora.init_lora_weights=pissa"), "pissa is of LoRA: AdaLoRA does not read it"),
        ((ADALORA, "lora.r=8"), "lora.r is a field of LoRA that AdaLoRA does not read"),
        ((ADALORA, "lora.use_rslora=true"), "lora.use_rslora is a field of LoRA"),
        (("quantization=nf4", "lora.init_lora_weights=mica"), "quantised ones are no floats"),
        (("quantization=nf4", BLOCKS), "lora.use_bdlora: PEFT has no form of it for a quantised base"),
        (("lora=pissa", BLOCKS), "an adapter of twice the rank"),
    ],
)
def test_what_no_run_trains_with_is_refused(words, said):
    (message,) = issues("model=tiny", *([words] if isinstance(words, str) else words))
    assert said in message


@pytest.mark.parametrize(
    "words",
    [
        ("lora=loftq", "lora.init_lora_weights=true"),  # its config is of a weaker source
        ("lora=pissa", "lora.use_dora=true", "lora.use_rslora=true", "lora.rank_pattern={q_proj: 4}"),
        ("lora.init_lora_weights=orthogonal",),
        (ADALORA, "lora.init_lora_weights=false"),
    ],
)
def test_what_a_run_trains_with_is_taken(words):
    assert one("model=tiny", *words).lora
