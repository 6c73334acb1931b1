"""What transformers has no loader for, converted once to a safetensors folder that it has one for."""
