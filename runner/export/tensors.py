"""A base's weights by name, one tensor at a time: from its files, or from a model that is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from runner.export.shards import INDEX


class CheckpointTensors(Mapping[str, torch.Tensor]):
    """The tensors of a folder's safetensors, read on access; empty for other files."""

    def __init__(self, folder: Path) -> None:
        index, whole = folder / INDEX, folder / "model.safetensors"
        self._files: dict[str, Path] = {}
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self._files = {name: folder / file for name, file in names.items()}
        elif whole.is_file():
            with safe_open(whole, "pt") as file:
                self._files = dict.fromkeys(file.keys(), whole)

    def __getitem__(self, name: str) -> torch.Tensor:
        # opened anew each time: the pages of a file that stays mapped would count as this process's memory
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._files  # without reading the tensor, as the base class would

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class ModelTensors(Mapping[str, torch.Tensor]):
    """The tensors of a loaded model; those that bitsandbytes quantised are de-quantised on access."""

    def __init__(self, model: Any) -> None:
        self._model = model
        named = (model.named_parameters, model.named_buffers)
        self._names = {name for each in named for name, _ in each(remove_duplicate=False)}

    def __getitem__(self, name: str) -> torch.Tensor:
        from peft.utils.integrations import dequantize_module_weight

        path, _, attribute = name.rpartition(".")
        module = self._model.get_submodule(path)
        tensor = dequantize_module_weight(module) if attribute == "weight" else getattr(module, attribute)
        return tensor.detach()

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
