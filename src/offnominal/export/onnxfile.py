"""Modules of tensors as ONNX files."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offnominal.errors import OptionError

__all__ = ["OPSET", "write_onnx"]

OPSET = 18
"""The lowest that torch's exporter writes; onnx's converter cannot bring its Pad and Pow lower."""

_LARGEST = 2**31 - 2**20  # bytes: protobuf cannot hold more in one file


def write_onnx(
    module: nn.Module,
    example: tuple[Any, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    about: Mapping[str, str],
) -> int:
    """Write a module as one file, its weights in it, and check it; gives the opset.

    Parameters
    ----------
    module : Module
        Run with ``example``; all shapes are fixed.
    path : Path
    inputs, outputs : sequence of str
        Names.
    about : mapping
        Metadata, all of it text.

    Raises
    ------
    OptionError
        If it cannot be written as one file.
    """
    import onnx

    with torch.no_grad(), _frozen(module), _quiet():
        made = torch.onnx.export(
            module.eval(),
            example,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    if model.ByteSize() > _LARGEST:
        raise OptionError(
            f"{path.name}: more than 2 GB, which one ONNX file cannot hold; keep fewer patches "
            "(--coreset), or take a smaller backbone"
        )
    for node in model.graph.node:  # where in the source each came from: half of a small file
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    del model.graph.metadata_props[:], model.metadata_props[:], model.graph.value_info[:]
    model.doc_string = ""
    model.producer_name = "offnominal"
    for name, text in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, text
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return next(int(one.version) for one in model.opset_import if not one.domain)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """With nothing that takes gradients: otherwise theirs would be exported as well."""
    learning = [each for each in module.parameters() if each.requires_grad]
    try:
        for each in learning:
            each.requires_grad_(False)
        yield
    finally:
        for each in learning:
            each.requires_grad_(True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks, which are about what it does, not about the file."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
