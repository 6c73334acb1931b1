"""Packed training: many LoRA adapters learn at once on one frozen base, each as it would alone."""
