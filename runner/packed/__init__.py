"""Packed training: many LoRA adapters learn at once on one frozen base, each as it would alone."""

from __future__ import annotations


class CannotPack(Exception):
    """Cells that could share a pack by their configs cannot with this model or machine; says why."""
