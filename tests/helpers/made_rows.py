"""Rows of files, prepared with settings of a test."""

import json
from pathlib import Path
from typing import Any

from runner.config.settings import DataSettings, TemplateSettings
from runner.data.prepare import Data, prepare
from runner.data.template import Renderer
from runner.models.model import byte_tokenizer

ALPACA = [  # the shape of alpaca_en_demo.json and huanhuan.json
    {"instruction": "List two fruits.", "input": "", "output": "1. Apple\n2. Pear\n\nEnjoy!"},
    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"},
    {"instruction": "大人，这雪下得——\n真大啊。", "input": "", "output": "是啊，\n“瑞雪兆丰年”呢……"},
]
SHAREGPT_PAIRS = [  # the shape of dpo_en_demo.json
    {
        "conversations": [
            {"from": "human", "value": "Let us play."},
            {"from": "gpt", "value": "Gladly!\n- You start."},
            {"from": "human", "value": "Chess?"},
        ],
        "chosen": {"from": "gpt", "value": "Chess it is:\n1. e4"},
        "rejected": {"from": "gpt", "value": "No."},
    },
    {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello 🙂"},
        "rejected": {"from": "gpt", "value": "What?"},
    },
]


def written(folder: Path, rows: list[dict], name: str = "rows.json") -> str:
    file = folder / name
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(file)


def made(
    path: Any,
    max_length: int | None = None,
    seed: int = 0,
    template: dict | None = None,
    kind: Any = "completion",
    **data: Any,
) -> Data:
    settings = DataSettings(path=path, **data)
    renderer = Renderer(byte_tokenizer(), TemplateSettings(**(template or {})), settings.train_on)
    return prepare(settings, renderer, max_length, seed, kind)
