"""The cells of a sweep: which runs it has, how each is called, and what tells one result from another."""

from __future__ import annotations

from dataclasses import dataclass

from runner.settings import RunConfig


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    ``name`` is its folder in the sweep folder, ``group`` the name that it shares with its repeats. ``key``
    digests all that decides its result. ``overrides`` are those of its axes (``lora.r=8``). In ``config`` the
    section ``sweep`` has its defaults, as in a run of its own.
    """

    name: str
    group: str
    key: str
    overrides: list[str]
    config: RunConfig
