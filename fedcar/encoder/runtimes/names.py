"""The runtimes by name, and which of them this process encodes with. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from fedcar.errors import FedcarError, quoted

EXACT = "torch"  # float32, the reference for all others
NAMES = (EXACT, "torch-bf16", "openvino", "openvino-bf16", "onnx", "onnx-int8")
AGREEMENT = 0.9999


@dataclass
class Setting:
    """What this process encodes with; the command line's --runtime writes it, every encoder reads it once."""

    name: str = EXACT
    agreement: float = AGREEMENT


setting = Setting()


def use(name: str, agreement: float = AGREEMENT) -> None:
    """Encode with this runtime from now on, or `auto`: the fastest whose mean cosine with float32 is `agreement`."""
    if name not in (*NAMES, "auto"):
        raise FedcarError(f"--runtime {quoted(name)}: not known; give auto or one of {', '.join(NAMES)}")
    setting.name, setting.agreement = name, agreement
