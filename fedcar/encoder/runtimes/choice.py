"""Which runtime encodes: the one that was asked for, or the fastest on the user's own texts, remembered by machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedcar.common.files import default_cache, whole_file
from fedcar.common.folders import made_once
from fedcar.common.measure import processor
from fedcar.common.vectors import unit
from fedcar.encoder.model_files import parameter_count
from fedcar.encoder.reading import Runtime, batches_by_length, padded
from fedcar.encoder.runtimes import names, onnx, onnx_file, openvino
from fedcar.encoder.runtimes.names import EXACT, NAMES
from fedcar.encoder.runtimes.torch_bf16 import torch_bfloat16
from fedcar.encoder.runtimes.torch_float32 import TorchFloat32
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.model import FrozenModel

PACKAGES = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnxscript")}
EIGHT_BITS = 0.999  # agreement that they do not reach
PROBES = 24
WORTH = 3e12  # multiplications and additions, about fifteen seconds of two cores in float32
SECONDS = 1.0  # for all candidates together, after each is built and has run once


def chosen(model: FrozenModel, texts: Sequence[str]) -> str:
    """The name of the runtime for this model; with `auto` measured on these texts where nothing is remembered.

    For few texts, which would be encoded by the time that a measurement takes, it is torch: always the same for the
    same texts.
    """
    if names.setting.name != "auto":
        return names.setting.name
    if not is_worth_it(model, texts):
        return EXACT
    memory, key = _memory(), _key(model)
    name = memory.get(key)
    if name not in NAMES or not is_installed(name):
        name = fastest(model, texts)
        _remember(memory | {key: name})
    return name


def is_worth_it(model: FrozenModel, texts: Sequence[str]) -> bool:
    """Whether encoding takes long enough: two operations a weight and token, a token being four characters."""
    return 2 * parameter_count(model.folder) * sum(map(len, texts)) / 4 > WORTH


def fastest(model: FrozenModel, texts: Sequence[str]) -> str:
    """Run every installed runtime on some of the texts; the fastest that agrees."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    picked = [texts[order[place]] for place in np.linspace(0, len(order) - 1, min(PROBES, len(order))).astype(int)]
    token_ids = model.tokenize(picked)
    batches = [
        padded([token_ids[row] for row in rows], model.padding_id)
        for rows in batches_by_length([len(ids) for ids in token_ids], 1024)
    ]
    runtimes: dict[str, Runtime] = {}
    wanted: NDArray[np.float32] | None = None
    for name in candidates(model):
        try:
            runtime = built(model, name)
            found = unit(np.concatenate([runtime.run(*batch).pooled for batch in batches]))
        except FedcarError:
            continue  # what cannot express this model is no candidate
        wanted = found if wanted is None else wanted
        if float(np.einsum("nd,nd->n", found, wanted).mean()) >= names.setting.agreement:
            runtimes[name] = runtime
    return min(measured(runtimes, batches).items(), key=lambda one: one[1])[0]


def measured(
    runtimes: dict[str, Runtime],
    batches: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    seconds: float = SECONDS,
) -> dict[str, float]:
    """Each one's least time for all batches; they take turns, so that other work on the machine hits all alike."""
    times: dict[str, float] = dict.fromkeys(runtimes, np.inf)
    end = time.perf_counter() + seconds
    while True:
        for name, runtime in runtimes.items():
            start = time.perf_counter()
            for batch in batches:
                runtime.run(*batch)
            times[name] = min(times[name], time.perf_counter() - start)
        if time.perf_counter() > end:
            return times


def candidates(model: FrozenModel) -> list[str]:
    """The installed runtimes that may agree; on a GPU torch's alone. Eight bits only where less agreement will do.

    ONNX Runtime, whose file takes five seconds to write, only where OpenVINO is missing or eight bits are wanted: in
    float32 it was the slower one in every measurement (docs/log.md). By name it is to be had everywhere.
    """
    installed = [name for name in NAMES if is_installed(name)]
    if model.device.type != "cpu" or model.is_large:  # the others hold a large model in float32, some of them twice
        return [name for name in installed if name.startswith("torch")]
    if names.setting.agreement < EIGHT_BITS:
        return installed
    return [name for name in installed if name != "onnx-int8" and not (name == "onnx" and is_installed("openvino"))]


def is_installed(name: str) -> bool:
    packages = PACKAGES.get(name.partition("-")[0], ())
    return all(find_spec(package) is not None for package in packages)


def runtime(model: FrozenModel, name: str) -> Runtime:
    """The model in that runtime, made once."""
    found: Runtime = model.once(f"runtime {name}", lambda: built(model, name))
    return found


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
    try:
        made_once(folder, name, lambda temporary: write(temporary / name))
    except OSError as error:
        raise FedcarError(f"{folder}: cannot be written ({error.strerror}); take --runtime torch") from error
    return folder / name


def _key(model: FrozenModel) -> str:
    """The machine, the packages and the encoder that a measurement holds for."""
    parts = [platform.platform(), processor(), str(os.environ.get("OMP_NUM_THREADS")), str(os.cpu_count())]
    parts += [f"{package}={_version(package)}" for package in ("torch", "openvino", "onnxruntime")]
    parts += [model.state_fingerprint, model.pooling, str(names.setting.agreement), model.device.type]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory_file() -> Path:
    return default_cache() / "runtime.json"


def _memory() -> dict[str, str]:
    try:
        found = json.loads(_memory_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(memory: dict[str, str]) -> None:
    """Kept for the next time where that can be; otherwise it is measured again."""
    try:
        _memory_file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with whole_file(_memory_file()) as stream:
            json.dump(memory, stream, indent=2)
    except OSError:
        pass
