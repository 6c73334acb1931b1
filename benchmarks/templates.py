"""Render every chat template of a folder through the runner, and compare with transformers' own rendering.

    python benchmarks/templates.py FOLDER [--details] [--only WORD] [--json FILE]

``FOLDER`` holds ``*.jinja`` files. Each is put on the tokenizer of SmolLM2 with the template's own control
tokens added, and renders every shape of ``template_shapes.py``. A cell is one template with one shape:

right          the text up to an answer is the served prompt (``apply_chat_template`` with the generation
               prompt), token by token; what is labelled is what follows it, up to and including the stop
               token; every word, call, argument and reasoning of a trained answer is in its labelled part;
               nothing else is labelled
warned         something of that, of another message or of the tools is lost, and a warning says of just that
refused with   the runner refuses the row or drops it, and transformers does too
refused alone  the runner refuses or drops a row that transformers renders
wrong          something is lost or labelled that should not be, without a word
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from template_oracle import CONTROL, Oracle, best_form, is_said, of_prompt, of_span, what_is_lost
from template_shapes import EVERYDAY, SHAPES

VERDICTS = ("right", "warned", "refused with", "refused alone", "wrong")
_PROBE = "ZQPROBE"
_ADDED = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)  # tokens, but not special, as in Qwen's tokenizers
_ENDS = (  # what stops generation in the families, the surest first
    *(
        "<|END_OF_TURN_TOKEN|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<end_of_turn>",
        "<turn|>",
        "<|return|>",
        "<|eot|>",
    ),
    *("<|end|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<|end_of_turn|>", "<|end_of_text|>"),
    *("<|endoftext|>", "<|assistant_end|>", "<seed:eos>", "[EOS]", "</s>"),
)


def tokenizer_for(base: Any, template: str) -> Any:
    """A copy of a tokenizer with the template, its control tokens, and the token that ends its answers."""
    import copy

    made = copy.deepcopy(base)
    made.chat_template = template
    controls = sorted({"<s>", "</s>", *CONTROL.findall(template)})
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    made.add_tokens([name for name in _ADDED if name in template])
    made.add_special_tokens({"extra_special_tokens": controls})
    for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
        turns = [{"role": role, "content": content} for role in ("user", "assistant")]
        try:
            text = made.apply_chat_template(turns, tokenize=False)
        except Exception:
            continue
        after = text.rpartition(_PROBE)[2] if text.count(_PROBE) > 1 else ""
        if found := next((end for end in _ENDS if end in after), None):
            made.eos_token = made.pad_token = found
            break
    return made


def check_cell(renderer: Any, messages: list[Any], tools: list[Any]) -> tuple[str, str]:
    """The verdict of a cell, and why."""
    from runner.core.errors import ConfigError
    from runner.data.formats import to_example
    from runner.data.messages import BadRow

    tokenizer, system = renderer.tokenizer, renderer.settings.system
    said = [{"role": "system", "content": system}, *messages] if system else messages
    said = [message | {"role": "system"} if message["role"] == "developer" else message for message in said]
    oracle = best_form(Oracle(tokenizer, said, tools, {}))
    try:
        example = to_example({"messages": messages, **({"tools": tools} if tools else {})}, 1, "messages")
        rows = renderer.render(example)
        warnings = renderer.warnings(example, rows)
        encoded = renderer.encode(rows)
    except (BadRow, ConfigError) as error:
        return ("refused alone" if oracle.renders() else "refused with"), str(error)[:300]
    if not rows:  # dropped and counted
        return (
            "warned" if oracle.renders() else "refused with"
        ), "the template writes nothing of its answers"
    if any(coded.apart and len(row.spans) > 1 for row, coded in zip(rows, encoded, strict=True)):
        warnings.append("tokenised apart")
    pairs = zip(rows, encoded, strict=True)
    spans = [(row, coded, start, end) for row, coded in pairs for start, end in row.spans]
    wrong = [
        f"span {number}: {text}" for number, span in enumerate(spans) for text in of_span(tokenizer, span)
    ]
    lost = what_is_lost(spans, said, tools)
    for index in oracle.answers() if oracle.renders() else ():
        near, found = of_prompt(oracle, index, spans)
        wrong += near
        lost += found
    if wrong:
        return "wrong", "; ".join(wrong)
    if unsaid := [text for text in lost if not is_said(text, warnings)]:
        return "wrong", "without a word: " + "; ".join(unsaid)
    return ("warned", f"{'; '.join(lost)}: {warnings}") if lost else ("right", "; ".join(warnings))


def main() -> None:
    """Print the table of a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--details", action="store_true", help="say why, of each cell that is not right")
    parser.add_argument("--only", default="", help="only templates with this in their name")
    parser.add_argument("--shape", default="", help="only shapes with this in their name")
    parser.add_argument("--json", type=Path, help="write all verdicts to this file")
    chosen = parser.parse_args()
    files = sorted(file for file in chosen.folder.glob("*.jinja") if chosen.only in file.name)
    if not files:
        parser.error(f"{chosen.folder} holds no {chosen.only}*.jinja")
    from runner.config.settings import TemplateSettings
    from runner.data.template import Renderer

    base = _base_tokenizer()
    cells: dict[str, dict[str, tuple[str, str]]] = {}
    for file in files:
        tokenizer = tokenizer_for(base, file.read_text(encoding="utf-8"))
        renderers = [Renderer(tokenizer, TemplateSettings(system=system)) for system in (None, "SYSC brief.")]
        cells[file.stem] = {
            shape: check_cell(renderers[shape == "system setting"], *SHAPES[shape])
            for shape in SHAPES
            if chosen.shape in shape
        }
        if chosen.details:
            for shape, (verdict, why) in cells[file.stem].items():
                if verdict != "right":
                    sys.stdout.write(f"{file.stem} | {shape} | {verdict} | {why}\n")
    if chosen.json:
        chosen.json.write_text(json.dumps(cells, indent=1, ensure_ascii=False))
    _print(cells)


def _base_tokenizer() -> Any:
    from common import compose

    from runner.models.model import find_base

    return find_base(compose([]).model).tokenizer


def _print(cells: dict[str, dict[str, tuple[str, str]]]) -> None:
    lines = [f"{'shape':<26}" + "".join(f"{verdict:>15}" for verdict in VERDICTS)]
    total: Counter[str] = Counter()
    for shape in SHAPES:
        counts = Counter(found[shape][0] for found in cells.values() if shape in found)
        total += counts
        lines.append(f"{shape:<26}" + "".join(f"{counts[verdict]:>15}" for verdict in VERDICTS))
    lines.append(f"{'all':<26}" + "".join(f"{total[verdict]:>15}" for verdict in VERDICTS))
    good = sum(
        all(found[shape][0] in ("right", "refused with") for shape in EVERYDAY if shape in found)
        for found in cells.values()
    )
    silent = sum(any(verdict == "wrong" for verdict, _ in found.values()) for found in cells.values())
    lines.append(f"{good} of {len(cells)} templates: all everyday shapes right, or refused with transformers")
    lines.append(f"{silent} of {len(cells)} templates: a shape that is wrong without a word")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
