"""ONNX files on disk: are they valid, and what goes in and out. Needs onnx and no torch."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autodistill_sam3.errors import CheckpointError, CheckpointNotFoundError, MissingPackageError

MANIFEST = "graphs.json"


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph as its file says.

    Attributes:
        name: Its name.
        dtype: The name of its numpy dtype.
        shape: Its sizes; a name where the size is free.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphFile:
    """A valid ONNX file."""

    path: Path
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def require(module: str) -> Any:
    """Import a module of the extra `onnx`.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"Expected the package {module.partition('.')[0]}, which ONNX files need, received none ({error}). "
            "Run: pip install 'autodistill-grounded-sam3[onnx]'"
        ) from error


def read_folder(folder: Path) -> list[GraphFile]:
    """The graphs of a folder that `export_onnx` wrote, in the order in which data flows.

    Raises:
        CheckpointNotFoundError: There is no `graphs.json`.
        CheckpointError: A file is missing, damaged or no valid ONNX.
        MissingPackageError: The package onnx is missing.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CheckpointNotFoundError(
            f"Expected {MANIFEST} in {folder}, received none. Write it first with "
            "`autodistill-sam3 convert --format onnx`, and give that folder."
        )
    try:
        names = [str(graph["file"]) for graph in json.loads(manifest.read_text(encoding="utf-8"))["graphs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"Expected a list of graphs in {manifest}, which cannot be read: {error!r}") from error
    return [read_graph(folder / name) for name in names]


def read_graph(path: Path) -> GraphFile:
    """Check a file and its weights, without reading the weights.

    Raises:
        CheckpointError: It is missing, damaged or no valid ONNX.
        MissingPackageError: The package onnx is missing.
    """
    onnx = require("onnx")
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
        _check_weights(model, path)
    # The checker raises types of its own for what is invalid, and protobuf's for what is no ONNX.
    except Exception as error:
        raise CheckpointError(f"Expected a valid ONNX file, received {path}: {error}. Export it again.") from error
    return GraphFile(path, _infos(model.graph.input), _infos(model.graph.output))


def _check_weights(model: Any, path: Path) -> None:
    """The checker looks whether the file of weights is there, not whether it is whole."""
    for tensor in model.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            size = (path.parent / where["location"]).stat().st_size
            end = int(where["offset"]) + int(where["length"])
            if size < end:
                raise ValueError(f"{where['location']} ends at {size} bytes and {tensor.name} at {end}")


def _infos(values: Any) -> tuple[TensorInfo, ...]:
    helper = require("onnx.helper")
    return tuple(
        TensorInfo(
            value.name,
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
        )
        for value in values
    )
