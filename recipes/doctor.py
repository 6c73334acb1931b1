"""What this machine has for fine-tuning: each line is well, or says what to do."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.markup import escape

from runner.config.settings import RunConfig
from runner.core import console
from runner.core.atomic import json_text, write_atomically
from runner.core.console import Table
from runner.doctor import hardware, surroundings
from runner.doctor.finding import Finding, checked
from runner.runs.run_folder import RunFolder


def run(config: RunConfig, folder: RunFolder) -> None:
    """Look at device, libraries, disks and hub, without a model: print a table, write ``doctor.json``."""
    checks = {
        "libraries": surroundings.packages,
        "device": hardware.devices,
        "matrix product": hardware.speed,
        "bitsandbytes": hardware.quantization,
        "attention": hardware.attention,
        "compiler": hardware.compiler,
        "memory": surroundings.memory,
        "disks": partial(surroundings.disks, Path(folder.path).parent),
        "git": surroundings.git,
        "hub": surroundings.hub,
    }
    with folder.timed("check"):
        findings = [finding for name, check in checks.items() for finding in checked(name, check)]
    write_atomically(folder.path / "doctor.json", json_text([asdict(finding) for finding in findings]))
    console.out.print(_table(findings))
    ill = sum(not finding.ok for finding in findings)
    folder.record["findings"] = {"all": len(findings), "not_ok": ill}
    console.out.print(f"\n{ill} of {len(findings)} lines need a look" if ill else "\nall is well")


def _table(findings: list[Finding]) -> Table:
    table = Table(show_header=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[bold red]![/]"
        words = escape(finding.found)
        if finding.advice:
            words += f"\n[yellow]{escape(finding.advice)}[/]"
        table.add_row(mark, escape(finding.name), words)
    return table
