"""A frozen base in 8-bit floating point (e4m3) with row-wise scales: its layer, its config, its loading."""

from runner.models.fp8.quantizer import Fp8Config

__all__ = ["Fp8Config"]
