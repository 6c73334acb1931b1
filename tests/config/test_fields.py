"""Fields read from a library's source are those that the imported class has."""

import importlib
import inspect

import pytest

from runner.config.checks import known_fields
from runner.config.library_fields import Field
from runner.config.reserved_keys import RESERVED
from runner.config.rules import CHOICES, RANGES
from runner.config.settings import OWN_SECTIONS
from runner.config.targets import ALLOWED_TARGETS, UnknownTarget, target_fields

TARGETS = [
    ("lora", "peft.LoraConfig"),
    ("lora", "peft.AdaLoraConfig"),
    ("lora", "peft.IA3Config"),
    ("lora", "peft.PromptEncoderConfig"),
    ("quantization", "transformers.BitsAndBytesConfig"),
    ("quantization", "transformers.HqqConfig"),
    ("quantization", "runner.models.fp8.Fp8Config"),
    ("trainer", "trl.SFTConfig"),
    ("trainer", "trl.DPOConfig"),
    ("trainer", "trl.KTOConfig"),
    ("trainer", "trl.RewardConfig"),
    ("trainer", "trl.experimental.orpo.ORPOConfig"),
    ("trainer", "transformers.TrainingArguments"),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("section", "target"), TARGETS)
def test_fields_are_those_of_the_class(section, target):
    package, _, name = target.rpartition(".")
    kind = getattr(importlib.import_module(package), name)
    parameters = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}
    assert set(target_fields(section, target)) == parameters


@pytest.mark.parametrize(("section", "target"), TARGETS)
def test_defaults_are_accepted(section, target):
    package, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(package), name).__init__).parameters
    fields = target_fields(section, target)
    plain = (bool, int, float, str, list, dict, type(None))
    refused = {
        key: reason
        for key, field in fields.items()
        if type(default := parameters[key].default) in plain and (reason := field.issue(default))
    }
    assert refused == {}


@pytest.mark.parametrize(
    "target", ["peft.Nope", "LoraConfig", "os.system", "peft.tuners.lora.LoraConfig", ""]
)
def test_other_classes_are_refused(target):
    with pytest.raises(UnknownTarget):
        target_fields("lora", target)


def test_a_class_that_the_package_does_not_export_is_refused():
    with pytest.raises(UnknownTarget):
        target_fields("quantization", "transformers.VptqLayerConfig")


def test_rules_are_about_fields_that_exist():
    usual = dict(zip(ALLOWED_TARGETS, ("peft.LoraConfig", "transformers.BitsAndBytesConfig"), strict=False))
    known = {"seed", "lora.num_virtual_tokens"}  # the last belongs to another class
    for target in ("trl.DPOConfig", "trl.experimental.orpo.ORPOConfig"):
        known |= {f"trainer.{name}" for name in known_fields("trainer", target)}
    for section in (*OWN_SECTIONS, "lora", "quantization", "trainer"):
        target = {**usual, "trainer": "trl.SFTConfig"}.get(section)
        known |= {f"{section}.{name}" for name in known_fields(section, target)}
    assert {*RANGES, *CHOICES, *RESERVED} - known == set()


def test_numbers_of_our_own_have_bounds():
    own = (name for name in OWN_SECTIONS if name != "sweep")  # which its own rules check
    numbers = {
        f"{name}.{key}"
        for name in own
        for key, field in known_fields(name, None).items()
        if field.types & {"int", "float"}
    }
    assert len(numbers) > 20
    assert numbers - set(RANGES) == set()


def test_types_of_annotations():
    fields = target_fields("lora", "peft.LoraConfig")
    assert fields["r"] == Field("r", frozenset({"int"}))
    assert fields["target_modules"].items == {"str"}
    assert fields["init_lora_weights"].issue("pissa_niter_16") is None
    assert "not allowed" in str(fields["init_lora_weights"].issue("pissa_niter_x"))
    assert "'pissa'" in str(fields["init_lora_weights"].issue("pisa"))
    assert fields["init_lora_weights"].issue(True) is None
    # no annotation: the type of the default
    bits = target_fields("quantization", "transformers.BitsAndBytesConfig")
    assert bits["load_in_4bit"].issue("yes") == "expected bool, got str 'yes'"
    assert target_fields("trainer", "trl.SFTConfig")["optim"].issue("sgd") is None
