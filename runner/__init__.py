"""Fine-tune a language model from a composed YAML config: ``python -m runner``."""

__version__ = "0.1.0"
