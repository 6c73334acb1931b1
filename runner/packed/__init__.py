"""Packed training: many LoRA adapters learn at once on one frozen base, each as it would alone."""

from __future__ import annotations


class CannotPack(Exception):
    """Cells that looked packable are not on this machine or with this model; the message says why."""
