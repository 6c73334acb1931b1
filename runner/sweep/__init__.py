"""Sweeps: their cells, how they are run, and what came of them."""
