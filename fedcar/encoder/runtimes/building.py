"""The model in each runtime, and which of them are installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fedcar.common.files import default_cache
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
    folder = default_cache() / "encoders" / f"{model.state_fingerprint[:24]}-{model.pooling}-{name}"
    if not (folder / name).is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_unfinished(os.getpid())) as temporary:
                write(Path(temporary) / name)
                with contextlib.suppress(FileExistsError):
                    folder.mkdir(mode=0o700)
                for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == name):  # it comes last
                    file.replace(folder / file.name)
        except OSError as error:
            raise FedcarError(f"{folder}: cannot be written ({error.strerror}); take --runtime torch") from error
    return folder / name


def remove_unfinished(process: int) -> None:
    """Remove what this process, which was killed, was writing into the cache."""
    for folder in (default_cache() / "encoders").glob(f"{_unfinished(process)}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _unfinished(process: int) -> str:
    return f".unfinished-{process}-"
