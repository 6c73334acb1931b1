"""What ``recipe=plan`` prints: one screen of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from runner.config.recipes.cards import Card
from runner.core import console
from runner.core.console import Table
from runner.parallel.processes import planned_shares
from runner.plan.estimate import Case, total_steps
from runner.plan.expected import Expected, duration_text, gib
from runner.plan.fit import SHARE, Setting, covering_length, with_recomputation
from runner.plan.rows import Rows
from runner.plan.step import Step
from runner.rules.bands import Departure
from runner.rules.page import table_lines

_WIDTH = 80  # columns
_SHOWN = 0.005 * 2**30  # bytes of a kind, below which it is 0.00 in the table
_SHORTER = 0.8  # of the longest row, what a shorter length must be to be worth a word
# Of each kind what it is, in a word or two.
_LABELS = {
    "base": "base weights",
    "reference": "reference model",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "backward": "a layer's backward pass",
    "logits": "logits and loss",
    "kernels": "kernels",
    "fragmentation": "workspaces, gaps",
    "context": "CUDA context",
}
_WEIGHTS = ("base", "reference", "adapter")


def opening(case: Case, rows: Rows, notes: Sequence[str]) -> None:
    """Print the model, what of it is trained, the rows and the step; and warnings."""
    config, architecture, step = case.config, case.architecture, case.step()
    model = str(config.model.path or config.model.architecture).partition("#")[0]
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column()
    kind = _format(step)
    what = "weights" if case.trained.whole else "base"
    each = "a part" if step.parts > 1 or step.zero else "a copy"
    gpus = f"{step.processes} GPUs, each with {each}" if step.processes > 1 else "one GPU"
    table.add_row("plan", escape(f"{case.recipe} of {model}, {kind} {what}, {gpus}"))
    share = case.trained.parameters / (architecture.parameters + case.trained.parameters)  # as a run says it
    trained = "all of them" if case.trained.whole else f"{case.trained.parameters:,} ({share:.2%})"
    table.add_row("parameters", f"{architecture.parameters:,}, trained {trained}")
    what = "pairs" if step.sequences == 2 else "rows"
    cells = f", {step.cells} runs in a pass" if step.cells > 1 else ""
    passes = f" in {step.accumulation} passes" if step.accumulation > 1 else ""
    shares = planned_shares(config)
    each = f" on each of {step.processes} GPUs" if step.processes > 1 else ""
    total = f"{shares.batch * shares.passes} {what}{passes}"
    words = f"{total}, {step.batch} x {case.length} tokens a pass{each}{cells}"
    table.add_row("step", words)
    if rows.lengths:
        mean = sum(rows.lengths) / len(rows.lengths)
        table.add_row(
            "data",
            f"{rows.count:,} {what}, {mean:,.0f} tokens on average, {max(rows.lengths):,} at most, "
            f"{covering_length(rows.lengths):,} cover 99%",
        )
    table.add_row("speed", escape(step.pieces.line()))
    console.out.print(table)
    for note in notes:
        console.warn(note)


def memory_table(case: Case, card: Card | None) -> None:
    """Print the memory of a step by kind: of the longest batch, and of one of average rows."""
    columns = [("longest batch" if case.lengths else "a full batch", case.memory(card))]
    if case.lengths:
        mean = max(1, round(sum(case.lengths) / len(case.lengths)))
        columns.append(("average rows", case.memory(card, length=mean)))
    table = Table()
    table.add_column("memory, GiB")
    for name, _ in columns:
        table.add_column(name, justify="right")
    for kind, label in _LABELS.items():
        if any(memory.parts.get(kind, 0) >= _SHOWN for _, memory in columns):
            table.add_row(label, *(gib(memory.parts.get(kind, 0)) for _, memory in columns))
    table.add_row("[bold]all[/]", *(f"[bold]{gib(memory.total)}[/]" for _, memory in columns))
    console.out.print()
    console.out.print(table)


def verdict(case: Case, card: Card) -> None:
    """Print whether the config fits the card, and the largest batch that does."""
    memory, most = case.memory(card), case.largest_batch(card)
    need = memory.total
    has = card.name if card.name.endswith("GiB") else f"{card.name}, {card.gib:.1f} GiB"
    console.out.print()
    if lacking := case.step(card).lacking(card):
        where = escape(f"{card.name} has no {lacking}")
        console.out.print(f"[bold red]does not run[/]: {where}: Ada, Hopper and newer have")
        return
    if need <= card.memory:
        tight = need > SHARE * card.memory
        word = "[yellow]fits, just[/]" if tight else "[green]fits[/]"
        console.out.print(f"{word} {escape(has)}: {gib(card.memory - need)} GiB are left")
    else:
        message = f"{gib(need - card.memory)} GiB too much for {has}"
        console.out.print(f"[bold red]does not fit[/]: {escape(message)}")
    if most:
        console.out.print(f"largest batch: {most} x {case.length} tokens a pass")
    elif longest := case.longest_row(card):
        console.out.print(f"not even one row of {case.length} tokens fits; one of {longest} would")
    else:
        parts = case.memory(card, 1, 1).parts
        weights = sum(parts.get(kind, 0) for kind in _WEIGHTS)
        largest = max(parts, key=lambda kind: parts[kind] * (kind not in _WEIGHTS))
        size = f"{_LABELS[largest]} take {gib(parts[largest])} GiB of a row of any length"
        console.out.print(
            "not even the weights fit" if weights > card.memory else f"beside the weights, {size}"
        )


def time_table(case: Case, card: Card) -> None:
    """Print how long a step, and the whole run, would take: an estimate."""
    found = case.duration(card)
    if found is None:
        why = "a token takes some of the experts" if card.rate else "the rates of this card are not known"
        why = "it does not run there" if case.step(card).lacking(card) else why
        console.out.print(f"time: not estimated, {why}")
        return
    steps = total_steps(case)
    words = f"about {duration_text(found.step)} a step, {found.mfu:.0%} of the card's products"
    console.out.print(f"time (an estimate): {words}")
    if steps:
        console.out.print(f"  {steps:,} steps in {duration_text(steps * found.step)}")


def advice(case: Case, setting: Setting | None, card: Card, rows: Rows) -> None:
    """Print what to change, each with its reason and what comes of it."""
    table = Table(padding=(0, 0, 0, 2), show_header=False)
    table.add_column()
    if setting is None:
        engine = "fsdp2" if case.config.lora else "zero3"
        table.add_row("no batch, base or recomputation fits: shorter rows, a smaller model,")
        table.add_row(f"or more GPUs, each with a part (parallel={engine})")
    elif not setting.overrides:
        table.add_row("nothing to change: it fits, and nothing here is faster")
    else:
        for key, why in setting.reasons.items():
            table.add_row(f"[cyan]{escape(_with_values(setting, key))}[/]\n  {escape(why)}")
        memory, time = setting.case.memory(card), setting.case.duration(card)
        words = f"then {gib(memory.total)} GiB"
        table.add_row(words + (f", about {duration_text(time.step)} a step" if time else ""))
    covered = covering_length(rows.lengths) if rows.lengths else 0
    if 0 < covered < _SHORTER * max(rows.lengths, default=0):
        why = (
            f"covers 99% of the rows, of which the longest has {max(rows.lengths)} tokens; it cuts the others"
        )
        table.add_row(f"[cyan]trainer.max_length={covered}[/]\n  {why}")
    console.out.print("\n[bold]advice[/]")
    console.out.print(table)


def table_of_sizes(case: Case, settings: Sequence[tuple[Card, Setting | None]]) -> None:
    """Print for each size of a card whether the config fits it, and what does."""
    table = Table()
    for name, right in (
        ("GPU", True),
        ("as it is", False),
        ("base", False),
        ("passes", True),
        ("activations", False),
        ("GiB", True),
    ):
        table.add_column(name, justify="right" if right else "left")
    for card, setting in settings:
        as_is = "fits" if case.fits(card) else "too large"
        if setting is None:
            table.add_row(card.name, as_is, "nothing fits", "", "", "")
            continue
        step = setting.case.step(card)
        table.add_row(
            card.name,
            as_is,
            _format(step),
            f"{step.accumulation} of {step.batch}",
            with_recomputation(step),
            gib(setting.case.memory(card).total),
        )
    console.out.print()
    console.out.print("no GPU here: what fits cards of these sizes, with as many rows a step")
    console.out.print(table)


def here(found: Expected) -> None:
    """Print what the config takes on this machine, which has no GPU."""
    if lacking := found.step.lacking(None):
        console.out.print(f"\non this CPU: does not run, it has no {lacking}")
        return
    console.out.print(f"\non this CPU: {found.line()}, {gib(found.place.free)} are free")


def departures(found: Sequence[Departure]) -> None:
    """Print where the config departs from what is usual, with what would follow it."""
    if found:
        console.out.print("\n[bold]unlike what is published[/]")
        for line in table_lines(found, _WIDTH - 2):
            console.out.print(f"  {escape(line)}", soft_wrap=True, highlight=False)


def ready(command: str | None, cards: Sequence[Card]) -> None:
    """Print the command that trains with what fits."""
    console.out.print()
    if command is None:
        console.out.print("no command: nothing fits")
        return
    where = f"for {cards[0].name}" if len(cards) == 1 else "for the smallest card that holds it"
    console.out.print(f"[bold]ready[/]  {escape(where)}")
    console.out.print(f"  {escape(command)}", soft_wrap=True)
    if len(cards) > 1:
        console.out.print("[dim]plan.gpu=rtx4090, or 24GiB, plans for one card[/]")


def _with_values(setting: Setting, key: str) -> str:
    """A key with its value, and those that were changed with it."""
    together = [key]
    if key.endswith("per_device_train_batch_size"):
        together.append("trainer.gradient_accumulation_steps")
    return " ".join(f"{name}={setting.overrides[name]}" for name in together)


def _format(step: Step) -> str:
    """The number format of the base's weights."""
    return step.quantization or ("fp32" if step.weight == 4 else step.precision)
