"""A checkpoint's tensors, read one by one: safetensors, or on request pickles of tensors only."""

from __future__ import annotations

import math
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np

from oml_mlflow.errors import SourceError, UnsupportedSource
from oml_mlflow.source.reading import read_json, values_of

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
# read without torch, which takes seconds to import
_NUMPYS_FLOATS = ("F64", "F32", "F16")
# 64 MiB of float32
_MAPPED_VALUES = 1 << 24
# up to 2.5 torch.load(weights_only=True) could be made to run code: CVE-2025-32434
_SAFE_TORCH = (2, 6)


class Checkpoint(ABC):
    """Tensors by name, from one or more `files`."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""

    def load(self, name: str) -> np.ndarray:
        """Return a tensor as float32."""
        tensor = self._tensor(name)
        if isinstance(tensor, np.ndarray):
            return tensor.astype(np.float32, copy=False)
        if not tensor.is_floating_point():
            raise UnsupportedSource(
                f"tensor {name} is stored as {tensor.dtype}, not as a float.",
                hint="use a checkpoint that is not quantised.",
            )
        values: np.ndarray = tensor.float().numpy()
        return values

    @abstractmethod
    def _tensor(self, name: str) -> Any:
        """Return a tensor of torch, or an array of floats."""

    def _stored(self, name: str, names: Container[str]) -> str:
        """Return the name under which a tensor is stored, be it one of a CLIPModel in a model."""
        for stored in (name, f"clip.{name}"):
            if stored in names:
                return stored
        raise SourceError(
            f"the weights hold no tensor {name!r}, which CLIPModel needs. Nothing was written.",
            hint="save the whole CLIPModel (model.save_pretrained), both towers and projections.",
        )


class SafetensorsWeights(Checkpoint):
    """The tensors of one or more safetensors files, each read on request.

    Raises:
        SourceError: If a file is damaged or cut short.
    """

    def __init__(self, files: list[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        super().__init__(files)
        self._opened: Any = None
        self._opened_as: tuple[Path, str] | None = None
        self._mapped_values = 0
        self._found: dict[str, tuple[Path, tuple[int, ...], str]] = {}
        for path in files:
            try:
                with safe_open(path, framework="np") as opened:
                    for name in opened.keys():  # noqa: SIM118 - no mapping
                        stored = opened.get_slice(name)
                        framework = "np" if stored.get_dtype() in _NUMPYS_FLOATS else "pt"
                        self._found[name] = path, tuple(stored.get_shape()), framework
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._entry(name)[1]

    def _tensor(self, name: str) -> Any:
        from safetensors import safe_open

        path, shape, framework = self._entry(name)
        # opened anew now and then: pages of a file that stays mapped count as this process's memory
        if (path, framework) != self._opened_as or self._mapped_values > _MAPPED_VALUES:
            self._opened, self._opened_as = safe_open(path, framework), (path, framework)
            self._mapped_values = 0
        self._mapped_values += math.prod(shape)
        return self._opened.get_tensor(self._stored(name, self._found))

    def _entry(self, name: str) -> tuple[Path, tuple[int, ...], str]:
        return self._found[self._stored(name, self._found)]


class PickledWeights(Checkpoint):
    """The tensors of ``pytorch_model.bin`` files; whatever else a pickle holds is refused.

    Args:
        files: Files of one checkpoint, mapped into memory rather than read where their format
            (torch 1.6 and newer) allows it.

    Raises:
        SourceError: If a file is damaged, holds anything but tensors, or the installed torch
            can't read it without risk. No code in it is run.
    """

    def __init__(self, files: list[Path]) -> None:
        import torch

        super().__init__(files)
        if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SAFE_TORCH:
            raise SourceError(
                f"torch {torch.__version__} can't read {files[0].name} safely: before 2.6 a file "
                "could run code in spite of weights_only (CVE-2025-32434). Nothing was read.",
                hint="install torch 2.6 or newer, or use a model with safetensors.",
            )
        self._tensors: dict[str, Any] = {}
        for path in files:
            try:
                loaded = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                )
            except pickle.UnpicklingError as error:
                raise SourceError(
                    f"{path} holds more than tensors, or is no checkpoint of torch: it was refused "
                    "without running anything in it. Nothing was written.",
                    hint="don't trust it; use a model with safetensors.",
                ) from error
            except Exception as error:  # torch raises nearly anything on a damaged file
                raise _damaged(path, error) from error
            if not isinstance(loaded, dict) or not all(map(torch.is_tensor, loaded.values())):
                raise SourceError(
                    f"{path} is no state dict of named tensors. Nothing was written.",
                    hint="save it with model.save_pretrained(folder).",
                )
            self._tensors |= loaded

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._tensor(name).shape)

    def _tensor(self, name: str) -> Any:
        return self._tensors[self._stored(name, self._tensors)].detach()


def open_weights(folder: Path, model_name: str, *, pickles: bool = False) -> Checkpoint:
    """Return the weights in the folder of a model, named by its hub id or folder.

    `pickles`: take ``pytorch_model.bin``, tensors only, where there are no safetensors.

    Raises:
        SourceError: If there are none, or only in a form that is not read.
    """
    if files := weight_files(folder, SAFETENSORS):
        return SafetensorsWeights(files)
    pickled = weight_files(folder, PICKLE)
    if pickled and pickles:
        return PickledWeights(pickled)
    if pickled or not Path(model_name).expanduser().is_dir():
        # the wording is OML4Py's
        found = f" (there is {pickled[0].name}, which is not read)" if pickled else ""
        raise SourceError(
            f"Provided model {model_name} does not have a safetensors version{found}. Nothing was "
            "written.",
            hint="If you want to forcefully use a model without safetensors, set "
            "ignore_safetensors_error to True in the settings: pytorch_model.bin is then read, "
            "tensors only; or save it anew with model.save_pretrained(folder).",
        )
    raise SourceError(
        f"{folder} holds no weights: {SAFETENSORS} is missing. Nothing was written.",
        hint="save the model with transformers: CLIPModel.from_pretrained(...)"
        ".save_pretrained(folder).",
    )


def weight_files(folder: Path, name: str) -> list[Path]:
    """Return the file or the shards of one form of the weights; none if it is not there."""
    index = folder / (name + INDEX)
    if (folder / name).is_file():
        return [folder / name]
    if not index.is_file():
        return []
    listed = read_json(index, "the index of the weights")
    with values_of(index):
        names = sorted(set(listed["weight_map"].values()))
        inside = all(Path(shard).name == shard for shard in names)
        missing = [shard for shard in names if not (folder / shard).is_file()]
    if not inside:
        raise SourceError(f"{index} names files outside its folder.", hint="don't trust it.")
    if missing:
        raise SourceError(
            f"{index} names {missing[0]!r}, which is no file in its folder. Nothing was written.",
            hint="fetch or save the model again.",
        )
    return [folder / shard for shard in names]


def _damaged(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{path} is cut short or damaged ({error}). Nothing was written.",
        hint="fetch or save the model again.",
    )
