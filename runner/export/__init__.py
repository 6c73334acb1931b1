"""From a trained adapter to a model that can be deployed: merge, GGUF, 4-bit."""
