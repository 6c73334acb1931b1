"""What a run prints: its model and data at the start, samples, scores, and a table of results at the end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.markup import escape

from runner.core.console import Table, out, warn
from runner.core.metric_names import RESULTS, find_metric
from runner.data.splits import Data, Split
from runner.reports.labels import verdict


def opening(
    config: Any,
    data: Data,
    method: str,
    steps: int,
    path: Path,
    warnings: list[str],
    speed: str,
    expected: str = "",
    adapted: str = "",
    parallel: str = "",
) -> None:
    """Print model, method, data, run folder, what of the base is ``adapted``, the pieces of ``speed``, how
    steps are shared (``parallel``) and what the run is ``expected`` to take before training; and warnings."""
    subject(config, method)
    _adapted(adapted)
    _data(data)
    out.print(f"[bold]run[/]  {escape(str(path))}, about {steps:,} steps")
    if parallel:
        out.print(f"[bold]parallel[/] {escape(parallel)}")
    _speed(speed, expected)
    for warning in warnings:
        warn(warning)


def subject(config: Any, how: str) -> None:
    """Print the recipe, the model, and how that is trained or computed with."""
    model = config.model.path or f"{config.model.architecture} (random weights)"
    out.print(f"[bold]{config.recipe}[/]  {escape(str(model).partition('#')[0])}, {how}")


def pack_opening(
    data: Data,
    method: str,
    cells: tuple[int, int],
    steps: int,
    speed: str,
    warnings: Iterable[str],
    expected: str,
    adapted: str = "",
) -> None:
    """Print the data of a pack, its cells, how many share a pass, their ``method``, the pieces of
    ``speed``, what it is ``expected`` to take and what of the base is ``adapted``."""
    _adapted(adapted)
    _data(data)
    count, cells_per_pass = cells
    passes = "in one pass" if cells_per_pass >= count else f"{cells_per_pass} in a pass, for memory"
    out.print(f"[bold]pack[/] {count} cells, {passes}, {method}, {steps:,} steps")
    _speed(speed, expected)
    for warning in warnings:
        warn(warning)


def _speed(speed: str, expected: str) -> None:
    out.print(f"[bold]speed[/] {escape(speed)}")
    if expected:
        out.print(f"[bold]plan[/] {escape(expected)}")


def _adapted(line: str) -> None:
    if line:
        out.print(f"[bold]lora[/] {escape(line)}")


def _data(data: Data) -> None:
    train = data.train
    share = train.trained_tokens / max(train.tokens, 1)
    formats = ", ".join(sorted({source.row_format for source in train.sources}))
    held_out = f", {len(data.eval.rows):,} held out{_places(data.eval)}" if data.eval else ""
    out.print(
        f"[bold]data[/] {len(train.rows):,} examples ({formats}){_places(train)}{held_out}, "
        f"{train.tokens:,} tokens, {share:.0%} of them loss tokens"
    )


def _places(split: Any) -> str:
    """Where the rows of a split are from: `` of FILE, FILE``."""
    names = [source.path for source in split.sources]
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return f" of {escape(', '.join(names[:3]))}{more}"


def closing(record: dict[str, Any], folder: Path) -> None:
    """Print the results of a run, then its time, speed and memory, and where its files are."""
    metrics = record["metrics"]
    table = Table(show_header=False)
    names = [name.removesuffix("_after") for name in metrics if name.endswith("_after")]
    for name in names:
        before, after = (_number(metrics[f"{name}_{when}"], name) for when in ("before", "after"))
        table.add_row(find_metric(name).label, f"{before} before, [bold green]{after} after[/]")
    for key in RESULTS:
        if metrics.get(key) is not None:
            table.add_row(find_metric(key).label, _number(metrics[key], key))
    if "trainable_parameters" in metrics:
        trained, total = metrics["trainable_parameters"], metrics["total_parameters"]
        table.add_row("trained", f"{trained:,} of {total:,} parameters ({trained / total:.2%})")
    table.add_row("time", f"{record['seconds']:.0f} s")
    phases = [
        (name.replace("_", " "), seconds) for name, seconds in record["times"].items() if seconds >= 0.5
    ]
    if phases:
        table.add_row("", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in phases))
    if "tokens_per_second" in metrics:
        table.add_row("speed", f"{metrics['tokens_per_second']:,.0f} tokens/s")
    if "peak_memory_bytes" in metrics:
        count = record.get("parallel", {}).get("processes", 1)
        each = f" in each of {count} processes" if count > 1 else ""
        table.add_row("peak memory", f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB{each}")
    table.add_row("device", escape(f"{record['device']['name']} ({record['device']['kind']})"))
    results = ("adapter", "model", "model-*", "report.html", "inspect.jsonl", "answers.jsonl", "plan.json")
    for file in (file for pattern in results for file in sorted(folder.glob(pattern))):
        table.add_row(file.stem.partition("-")[0], escape(str(file)))
    out.print()
    out.print(table)


def nothing_to_do(record: dict[str, Any], folder: Path) -> None:
    """Say that the run in a folder has completed already, and where its files are."""
    ended = f" ({record['ended']})" if record.get("ended") else ""
    out.print(f"[bold green]completed already[/]{escape(ended)}, nothing is left to do")
    out.print(f"[bold]run[/]  {escape(str(folder))}")


def samples(rows: list[dict[str, Any]]) -> None:
    """Print held-out prompts with the answers before and after."""
    for row in rows:
        mark = {True: "[green]right[/]", False: "[red]wrong[/]"}.get(row["after_match"], "")
        out.print(f"\n[bold]{escape(row['prompt'])}[/]")
        out.print(f"  [dim]before[/] {escape(_short(row.get('before_answer', row['before'])))}")
        out.print(f"  [dim]after [/] {escape(_short(row.get('after_answer', row['after'])))} {mark}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."


def stages(done: dict[str, Any]) -> None:
    """Print the recipe, time and results of each stage of a chain."""
    table = Table()
    for name in ("stage", "recipe", "seconds", "result"):
        table.add_column(name)
    for name, stage in done.items():
        scores = {key: value for key, value in stage["metrics"].items() if isinstance(value, float)}
        shown = ", ".join(
            f"{key} {value:.4g}" for key, value in scores.items() if key.removesuffix("_after") in RESULTS
        )
        table.add_row(escape(name), stage["recipe"], f"{stage['seconds']:.0f}", shown)
    out.print()
    out.print(table)


def evaluation(found: dict[str, Any]) -> None:
    """Print each score of each model, and whether its difference from the first is more than noise."""
    first, *others = found["models"]
    for column in others or [first]:
        table = Table()
        table.add_column("score")
        for name in dict.fromkeys((first, column)):
            table.add_column(escape(name), justify="right")
        if others:
            table.add_column("difference", justify="right")
        table.add_column(f"{found['confidence']:.0%} interval")
        table.add_column("")
        for name, score in found["models"][column].items():
            row = [escape(name), _number(score["value"], name)]
            shown, worth = score, ""
            if others:
                shown = found["differences"][column][name]
                row.insert(1, _number(found["models"][first][name]["value"], name))
                row.append(_number(shown["value"], name, "+"))
                worth = _verdict(shown, score["higher"])
            sign = "+" if others else ""
            low, high = (_number(shown[bound], name, sign) for bound in ("low", "high"))
            table.add_row(*row, f"{low} to {high}", worth)
        for name in found["tasks"].get(column, {}):
            scores = [found["tasks"][model].get(name) for model in dict.fromkeys((first, column))]
            table.add_row(escape(name), *("-" if score is None else f"{score:.4g}" for score in scores))
        out.print()
        out.print(table)
    for name, score in found["models"][first].items():
        if "signature" in score:
            out.print(f"[dim]{escape(name)} {escape(score['signature'])}[/]")


def _verdict(gap: dict[str, Any], higher: bool) -> str:
    word = verdict(gap, higher)
    tone = {"better": "green", "worse": "red"}.get(word, "dim")
    return f"[{tone}]{word}[/]"


def _number(value: float, name: str, sign: str = "") -> str:
    """Shares as percentages, everything else with four digits."""
    return format(value, f"{sign}.1%" if find_metric(name).share else f"{sign}.4g")


def marked_row(source: int, pieces: list[tuple[str, bool]], sequence: str = "") -> None:
    """Print one example as (text, is loss) pieces; loss tokens are green, or in brackets without colours."""
    out.print(f"\n[bold]example {source} {sequence}[/]  [green]loss tokens[/], [dim]masked (-100)[/]")
    for text, is_loss in pieces:
        style, left, right = ("green", "[[", "]]") if is_loss else ("dim", "", "")
        shown = text if out.is_terminal else f"{left}{text}{right}"
        out.print(f"[{style}]{escape(shown)}[/]", end="")
    out.print()


def histogram(label: str, values: list[int], limit: int | None) -> None:
    """Print a histogram of whole numbers in up to ten bins; ``limit`` is named below it."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // 10))
    bins = [0] * (-(-(high - low + 1) // width))
    for value in values:
        bins[(value - low) // width] += 1
    out.print(f"\n[bold]{label}[/]")
    for number, count in enumerate(bins):
        first = low + number * width
        out.print(f"  {first:>6}-{first + width - 1:<6} {'█' * round(40 * count / max(bins)):<40} {count:,}")
    middle = sorted(values)[len(values) // 2]
    out.print(f"  median {middle:,}, longest {high:,}, max_length {limit or 'none'}")


def counts(split: Split) -> None:
    """Print what was read, removed and kept of a split, by reason."""
    out.print(f"\n[bold]{split.name} examples[/]")
    table = Table(padding=(0, 2, 0, 2), show_header=False)
    for reason, count in split.counts.items():
        table.add_row(reason, f"{count:,}")
    table.add_row("[bold]kept[/]", f"[bold]{len(split.rows):,}[/]")
    share = split.trained_tokens / max(split.tokens, 1)
    table.add_row("tokens", f"{split.tokens:,}, of which loss tokens {split.trained_tokens:,} ({share:.0%})")
    out.print(table)
