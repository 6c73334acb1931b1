"""How far a quantised base is from the base in bf16: its logits, and what an adapter learns on it.

    python benchmarks/quantization_distance.py                       # SmolLM2-135M, on a GPU that has fp8
    python benchmarks/quantization_distance.py --kinds none,int8,nf4 --steps 20 --seeds 0     # elsewhere
    python benchmarks/quantization_distance.py --model tiny --kinds none,nf4 --steps 3 --rows 4 --answers 4

Distance of logits: each base reads the same held-out rows, and its next-token distributions are compared
with those of the base in bf16 (KL divergence in nats a token, share of tokens with the same first choice).
Task: one sweep of the command line trains an adapter on each base from each seed, on the embedded order
messages and with the settings of the default job but for the number of steps; exact match and loss are those
of held-out rows, the mean of the seeds. Few steps leave room between bases: after an epoch all answer right.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import compose

from runner.core.library_env import set_library_env

KINDS = ("none", "int8", "nf4", "fp8")


def main() -> None:
    """Measure, print the table, and write the figures to ``--out``."""
    set_library_env()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kinds", default=",".join(KINDS), help="options of conf/quantization")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=60, help="of training; 0: only the logits")
    parser.add_argument("--batch", type=int, default=4, help="rows a step")
    parser.add_argument("--rows", type=int, default=64, help="whose logits are compared")
    parser.add_argument("--answers", type=int, default=100, help="held-out rows that are answered")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides")
    parser.add_argument("--out", type=Path, help="a folder for figures and the sweep, which goes on there")
    options = parser.parse_args()
    options.kinds = list(dict.fromkeys(["none", *options.kinds.split(",")]))
    with tempfile.TemporaryDirectory() as name:
        out = options.out or Path(name)
        out.mkdir(parents=True, exist_ok=True)
        scores = task_scores(options, out / "sweep") if options.steps else {}
        figures = logit_distance(options)
        for kind in scores:
            figures[kind] |= scores[kind]
        print(table(figures, options))
        (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


def logit_distance(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """For each kind of base the distance of its logits from bf16's, and its size in bytes."""
    import torch

    from recipes.run import quiet_libraries
    from runner.data.template import Renderer
    from runner.evaluation.logit_kl import compare, read_texts
    from runner.export.compare_rows import rows_to_compare
    from runner.models.build import quantization_config
    from runner.models.model import Precision, find_base, load_model

    quiet_libraries()
    precision = Precision("bf16", torch.bfloat16, None)
    found: dict[str, dict[str, Any]] = {}
    expected: list[Any] = []
    for kind in options.kinds:
        run = compose([*words(options), f"quantization={kind}"])
        run = replace(run, merge=replace(run.merge, prompts=options.rows))
        base = find_base(run.model)
        renderer = Renderer(base.tokenizer, run.template, run.data.train_on)
        texts = [row.input_ids for row in rows_to_compare(run, renderer, "completion")[0].rows]
        model: Any = load_model(base, quantization_config(run, precision), precision.dtype, seed=0)
        logits = read_texts(model, texts, precision)
        expected = expected or logits
        tensors = [*model.parameters(), *model.buffers()]
        found[kind] = {**asdict(compare(expected, logits)), "bytes": sum(each.nbytes for each in tensors)}
        del model, tensors
        gc.collect()
    return found


def task_scores(options: argparse.Namespace, sweep: Path) -> dict[str, dict[str, Any]]:
    """For each kind of base, ``exact_match`` and ``eval_loss`` of each seed's adapter, from a ``sweep``."""
    found: dict[str, dict[str, Any]] = {}
    command = [sys.executable, "-m", "runner", "-m", *words(options), f"output_dir={sweep}"]
    command += [f"quantization={','.join(options.kinds)}", f"seed={options.seeds}"]
    command += [f"trainer.max_steps={options.steps}", "trainer.save_strategy=no"]
    command += [f"trainer.per_device_train_batch_size={options.batch}"]
    command += ["generation.samples=0", f"generation.rows={options.answers}"]
    subprocess.run(command, check=True)
    for file in sorted(sweep.glob("*/run.json")):
        record = json.loads(file.read_text())
        axes = dict(word.split("=", 1) for word in file.parent.name.split(","))
        own = found.setdefault(str(axes.get("quantization", options.kinds[0])), {})
        for key, metric in (("exact_match", "exact_match_after"), ("eval_loss", "eval_loss")):
            own.setdefault(key, []).append(record["metrics"][metric])
    return found


def words(options: argparse.Namespace) -> list[str]:
    """The overrides that all measurements share."""
    return [f"model={options.model}", "trainer.precision=bf16", *options.set]


def table(figures: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """The figures as a Markdown table, a line a kind of base."""
    tokens = next(iter(figures.values()))["tokens"]
    note = f"{options.model}: logits of {tokens} tokens"
    head = ["base", "MiB", "KL to bf16", "top-1 agreement"]
    if options.steps:
        head += ["exact match", "held-out loss", "by seed"]
        note += f"; adapters of {options.steps} steps, seeds {options.seeds}"
    lines = [head, ["---"] * len(head)]
    for kind, found in figures.items():
        line = ["bf16" if kind == "none" else kind, f"{found['bytes'] / 2**20:,.0f}"]
        line += [f"{found['kl']:.2e}", f"{found['greedy_agreement']:.2%}"]
        if options.steps:
            match, loss = found["exact_match"], found["eval_loss"]
            line += [f"{statistics.mean(match):.1%}", f"{statistics.mean(loss):.4f}"]
            line += [", ".join(f"{one:.0%} {other:.4f}" for one, other in zip(match, loss, strict=True))]
        lines.append(line)
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", note])


if __name__ == "__main__":
    main()
