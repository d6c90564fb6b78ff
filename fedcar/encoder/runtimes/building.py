"""The model in each runtime, and which of them are installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fedcar.common.files import encoders_folder
from fedcar.common.folders import made_once
from fedcar.encoder.runtimes import onnx, onnx_file, openvino
from fedcar.encoder.runtimes.names import EXACT
from fedcar.encoder.runtimes.torch_bf16 import torch_bfloat16
from fedcar.encoder.runtimes.torch_float32 import TorchFloat32
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from fedcar.encoder.model import FrozenModel
    from fedcar.encoder.reading import Runtime

PACKAGES = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnxscript")}


def is_installed(name: str) -> bool:
    packages = PACKAGES.get(name.partition("-")[0], ())
    return all(find_spec(package) is not None for package in packages)


def built(model: FrozenModel, name: str) -> Runtime:
    """The model in that runtime; its file is kept in the user's cache folder."""
    if name == EXACT:
        return TorchFloat32(model.transformer, model)
    if name == "torch-bf16":
        return torch_bfloat16(model)

    def in_onnx(precision: str) -> Path:
        return _file(model, f"{precision}.onnx", lambda file: onnx_file.write(model, file, precision))

    if name.startswith("onnx"):
        return onnx.OnnxRuntime(in_onnx("int8" if name.endswith("int8") else "fp32"))
    file = _file(model, "openvino.xml", lambda file: openvino.write(model, file, lambda: in_onnx("fp32")))
    return openvino.OpenVino(file, "bf16" if name.endswith("bf16") else "f32")


def _file(model: FrozenModel, name: str, write: Callable[[Path], None]) -> Path:
    """The encoder in a file of this name, with what it needs beside it; written the first time."""
    folder = encoders_folder() / f"{model.state_fingerprint[:24]}-{model.pooling}-{name}"
    try:
        made_once(folder, name, lambda temporary: write(temporary / name))
    except OSError as error:
        raise FedcarError(f"{folder}: cannot be written ({error.strerror}); take --runtime torch") from error
    return folder / name
