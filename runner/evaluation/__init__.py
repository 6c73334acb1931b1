"""Evaluation: generated answers, metrics, held-out loss, confidence intervals, a chat."""
