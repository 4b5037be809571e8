"""export(): a model as an ONNX file or as a program of torch.export, checked by running it beside the model."""

from __future__ import annotations

import copy
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from throughtime.errors import ConfigError, ExportError, ThroughtimeError
from throughtime.files import write_file
from throughtime.nn.convert import convert
from throughtime.nn.export_check import Runner, check, free_sizes
from throughtime.nn.layer import StackedLayer

FORMATS = (".onnx", ".pt2")
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_MOST = 2**31 - 2**20  # bytes: what one protobuf message may have, with room for what is no weight


@dataclass(frozen=True)
class Exported:
    """What was written: the file, what goes in and comes out in order, and how well it agreed with the model.

    inputs, outputs: for each name its dtype and shape; a size that is free is a name. difference: the largest absolute
    one between an output of the file and of the model, over all sizes that were tried.
    """

    path: Path
    inputs: dict[str, tuple[str, tuple[int | str, ...]]]
    outputs: dict[str, tuple[str, tuple[int | str, ...]]]
    difference: float

    def __str__(self) -> str:
        def line(what: str, name: str, dtype: str, shape: tuple[int | str, ...]) -> str:
            return f"{what:4} {name:12} {dtype:8} [{', '.join(map(str, shape))}]"

        lines = [line("in", name, *found) for name, found in self.inputs.items()]
        lines += [line("out", name, *found) for name, found in self.outputs.items()]
        return "\n".join([str(self.path), *lines, f"agrees with the model: largest difference {self.difference:.1e}"])


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Any,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    sizes: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> Exported:
    """Write a model with recurrent layers to `path`, by its ending:

    .onnx: an ONNX model (opset 18). LSTM, GRU, RNN are the operations of that name, any other cell is a Scan over its
           step. Needs `pip install throughtime[export]`.
    .pt2:  a program of torch.export that torch loads and runs without throughtime: torch's own lstm, gru, rnn_tanh and
           rnn_relu, for any other cell torch's scan over its step.

    model: any module that torch.export can trace, its recurrent layers those of throughtime.nn or torch.nn. A copy of
    it is written, in eval mode and on the CPU; the model stays as it is.
    example: the arguments of a call: a tensor, or a tuple of tensors and of tuples of them, such as (x, (h, c)). Each
    size of at least 2 that the model does not fix may be another one later, 1 too: steps and batch, as a rule. Numbers
    of symbols should range over all that there are: the check draws from them.
    inputs, outputs, sizes: names for ONNX, in order: of the flat inputs and outputs, and of the free sizes as they
    first appear. metadata: texts that go with the file: ONNX metadata_props, or extra files of a .pt2.

    What was written is run in onnxruntime, or in torch, at several sizes and on random inputs beside the model. The
    file appears only if all outputs agree, in one rename.
    Raises ConfigError for another ending or names that do not fit, ExportError where packages are missing, the model
    cannot be traced, or the file computes something else, WriteError where it cannot be written.
    """
    place = Path(path)
    if place.suffix not in FORMATS:
        raise ConfigError(f"{place} must end in {' or '.join(FORMATS)}: the ending says what is written")
    if place.suffix == ".onnx":
        _import_onnx()
    args = tuple(example) if isinstance(example, tuple | list) else (example,)
    leaves = pytree.tree_leaves(args)
    if not leaves or not all(isinstance(v, Tensor) for v in leaves):
        raise ConfigError("example must be the arguments of a call: a tensor, or a tuple of tensors and tuples of them")
    with _quiet(), torch.no_grad():
        ready, args = _ready(model), pytree.tree_map(lambda v: v.detach().cpu(), args)
        traced = _trace(ready, args)
        free = _names("sizes", sizes, [str(s) for s in free_sizes(traced)], fill=True)
        given = _names("inputs", inputs, list(traced.graph_signature.user_inputs))
        shown = _names("outputs", outputs, _output_names(len(traced.graph_signature.user_outputs)))
        taken = _described(traced, traced.graph_signature.user_inputs, given, free)
        made = _described(traced, traced.graph_signature.user_outputs, shown, free)
        if place.suffix == ".onnx":
            content, runner = _as_onnx(traced, given, shown, free, metadata or {})
        else:
            content, runner = _as_program(traced, metadata or {})
        difference = check(ready, runner, traced, args)
    write_file(place, content)
    return Exported(place, taken, made, difference)


def _ready(model: nn.Module) -> nn.Module:
    """A copy of the model to be traced: no training, no gradients, on the CPU, every layer on our operator."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module; came {type(model).__name__}")
    ready = convert(copy.deepcopy(model).eval().requires_grad_(False).cpu())
    for layer in ready.modules():
        if isinstance(layer, StackedLayer):
            layer.backend, layer.memory = "auto", "fast"
    return ready


def _trace(model: nn.Module, args: tuple) -> ExportedProgram:
    free = pytree.tree_map(lambda v: dict.fromkeys(range(v.dim()), torch.export.Dim.AUTO), args)
    try:
        return torch.export.export(model, args, dynamic_shapes=free)
    except ThroughtimeError:
        raise
    except Exception as error:  # torch has many of its own
        raise ExportError(
            f"torch.export cannot trace {type(model).__name__} with this example ({_first_line(error)}); try "
            "torch.export.export(model, example) by itself to see where"
        ) from error


def _as_onnx(
    traced: ExportedProgram, inputs: list[str], outputs: list[str], sizes: list[str], metadata: Mapping[str, str]
) -> tuple[bytes, Runner]:
    from throughtime.nn.export_onnx import serialised, session, to_onnx

    if sum(v.nbytes for v in traced.state_dict.values()) > _MOST:
        raise ExportError("the weights have more than 2 GB, and one ONNX file holds no more; write a .pt2 instead")
    try:
        content = serialised(to_onnx(traced, inputs, outputs), dict(zip(_free(traced), sizes, strict=True)), metadata)
    except ThroughtimeError:
        raise
    except Exception as error:
        raise ExportError(f"torch.onnx cannot write this model ({_first_line(error)})") from error
    try:
        return content, session(content)
    except Exception as error:
        raise ExportError(f"onnxruntime cannot run it ({_first_line(error)}); nothing was kept") from error


def _as_program(traced: ExportedProgram, metadata: Mapping[str, str]) -> tuple[bytes, Runner]:
    from throughtime.nn.export_torch import to_torch

    file = io.BytesIO()
    program = to_torch(traced)
    torch.export.save(program, file, extra_files=dict(metadata))
    module = torch.export.load(io.BytesIO(file.getvalue())).module()
    return file.getvalue(), lambda args: pytree.tree_leaves(module(*args))


def _free(traced: ExportedProgram) -> list[str]:
    return [str(s) for s in free_sizes(traced)]


def _import_onnx() -> None:
    missing = []
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ExportError(f"an ONNX file needs {', '.join(missing)}: pip install throughtime[export]")


def _names(what: str, given: Sequence[str], found: list[str], fill: bool = False) -> list[str]:
    """The names given, or those found; with `fill`, those found behind fewer that were given."""
    names = [*given, *found[len(given) :]] if fill or not given else list(given)
    if len(names) != len(found) or len(set(names)) < len(names) or not all(isinstance(n, str) and n for n in names):
        raise ConfigError(f"{what} must be {len(found)} different names, for the model has so many; came {list(given)}")
    return names


def _output_names(count: int) -> list[str]:
    return ["output", *(f"output_{k}" for k in range(1, count))]


def _described(
    traced: ExportedProgram, places: Sequence[str], names: Sequence[str], sizes: Sequence[str]
) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    nodes = {node.name: node for node in traced.graph.nodes}
    called = dict(zip(_free(traced), sizes, strict=True))
    found = {}
    for place, name in zip(places, names, strict=True):
        if not isinstance(value := nodes[place].meta["val"] if place in nodes else None, Tensor):
            raise ExportError(f"{name} is no tensor; let the model's forward take and give tensors only")
        shape = tuple(int(str(n)) if str(n).isdigit() else called.get(str(n), str(n)) for n in value.shape)
        found[name] = str(value.dtype).removeprefix("torch."), shape
    return found


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxscript say of their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch._export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
