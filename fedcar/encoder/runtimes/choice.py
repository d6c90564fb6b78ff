"""Which runtime encodes: the one that was asked for, or the fastest on the user's own texts, remembered by machine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedcar.common.measure import OtherWork
from fedcar.encoder.model_files import parameter_count
from fedcar.encoder.reading import Runtime
from fedcar.encoder.runtimes import names
from fedcar.encoder.runtimes.building import built, is_installed
from fedcar.encoder.runtimes.names import EXACT, NAMES
from fedcar.encoder.runtimes.remembered import FINAL, Fastest, one_at_a_time, recall, remember
from fedcar.encoder.runtimes.watching import Known, Trial, tried
from fedcar.errors import FedcarError, FedcarWarning

if TYPE_CHECKING:
    from fedcar.encoder.model import FrozenModel

EIGHT_BITS = 0.999  # agreement that they do not reach
PROBES, FEWEST_PROBES, SHARE_OF_TEXTS = 24, 4, 0.1
WORTH = 3e12  # multiplications and additions, about fifteen seconds of two cores in float32
QUIET = 0.1  # of the machine's processors, taken by others
TEXTS = (  # what a runtime is tried on that is asked for by name
    "water",
    "Who changes the filter?",
    "The pump stands in the cellar beside the boiler, and the key hangs behind the door.",
    " ".join(f"Part {number} is checked in spring, oiled in summer and put away dry." for number in range(30)),
)


def chosen(model: FrozenModel, texts: Sequence[str]) -> str:
    """The name of the runtime for this model; with `auto` measured on these texts where nothing is remembered.

    For few texts, which would be encoded by the time that a measurement takes, it is torch: always the same for the
    same texts. What was measured while others worked on the machine is measured again once they do not.

    Formal guarantees:
        what_was_measured_on_a_busy_machine_is_measured_again_on_a_quiet_one
    """
    if names.setting.name != "auto":
        return names.setting.name
    if not is_worth_it(model, texts):
        return EXACT
    before = _remembered(model)
    if before is not None and not (before.busy and is_quiet()):
        return before.name
    with one_at_a_time():
        now = _remembered(model)
        if now is not None and now != before:  # by another process, while this one waited
            return now.name
        return fastest(model, texts)


def _remembered(model: FrozenModel) -> Fastest | None:
    found = recall(model).fastest.get(str(names.setting.agreement))
    return found if found is not None and is_installed(found.name) else None


def is_worth_it(model: FrozenModel, texts: Sequence[str]) -> bool:
    """Whether encoding takes long enough: two operations a weight and token, a token being four characters."""
    return 2 * parameter_count(model.folder) * sum(map(len, texts)) / 4 > WORTH


def is_quiet(seconds: float = 0.2) -> bool:
    """Whether others leave the machine alone just now; not where the system does not tell."""
    share = OtherWork().share(seconds)
    return share is not None and share < QUIET


def fastest(model: FrozenModel, texts: Sequence[str]) -> str:
    """Try every installed runtime on some of the texts; the fastest that agrees, which is remembered.

    By the clock where the machine was quiet, otherwise by CPU seconds, which other work changes little.
    """
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    count = min(PROBES, len(texts), max(FEWEST_PROBES, int(SHARE_OF_TEXTS * len(texts))))
    picked = [texts[order[place]] for place in np.linspace(0, len(order) - 1, count).astype(int)]
    record = recall(model)
    allowed = [name for name in candidates(model) if not _refused(record.tried.get(name))]
    share = sum(map(len, picked)) / max(1, sum(map(len, texts)))
    with model.without_remarks():
        trial = tried(model, allowed, model.tokenize(picked), names.setting.agreement, share)
    _tell(trial)
    busy = trial.others is None or trial.others >= QUIET
    seconds = {name: clocks["cpu" if busy else "wall"] for name, clocks in trial.seconds.items()}
    sound = [name for name in seconds if not trial.known[name].fault]
    if not sound:
        remember(model, trial.known)
        return EXACT
    name = min(sound, key=lambda name: seconds[name])
    remember(model, trial.known, {str(names.setting.agreement): Fastest(name, busy)})
    return name


def _refused(known: Known | None) -> bool:
    return known is not None and known.fault in FINAL


def _tell(trial: Trial) -> None:
    """One line for each runtime that did harm; none for one that cannot express the model, or is less exact."""
    for name, known in trial.known.items():
        if known.fault and known.fault != "error":
            message = f"runtime {name} {known.said} with this encoder on this machine, so another one is taken"
            warnings.warn(message, FedcarWarning, stacklevel=4)
    if trial.reason:
        message = f"no runtime could be tried, so torch encodes: {trial.reason}"
        warnings.warn(message, FedcarWarning, stacklevel=4)


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


def runtime(model: FrozenModel, name: str) -> Runtime:
    """The model in that runtime, made once; what was never seen to work with it is first tried in another process.

    Raises FedcarError where that process did not live through it, where the numbers were wrong, or where the runtime
    cannot express the model.

    Formal guarantees:
        a_runtime_asked_for_by_name_that_kills_its_process_is_one_line
    """
    found: Runtime = model.once(f"runtime {name}", lambda: _checked(model, name))
    return found


def _checked(model: FrozenModel, name: str) -> Runtime:
    if name == EXACT or not is_installed(name):
        return built(model, name)
    known = _settled(model, name)
    if known is None:
        with one_at_a_time():
            known = _settled(model, name) or _tried_by_name(model, name)
    if known.fault == "error":
        raise FedcarError(known.said)
    if known.fault:
        way_out = "take --runtime torch or auto"
        raise FedcarError(f"--runtime {name}: {known.said} when it was tried with this encoder; {way_out}")
    return built(model, name)


def _settled(model: FrozenModel, name: str) -> Known | None:
    """What is known of it for good; what was short of time or memory is tried again when it is asked for by name."""
    known = recall(model).tried.get(name)
    return known if known is not None and (not known.fault or _refused(known)) else None


def _tried_by_name(model: FrozenModel, name: str) -> Known:
    with model.without_remarks():
        trial = tried(model, [name], model.tokenize(TEXTS))
    remember(model, trial.known)
    return trial.known.get(name, Known())  # nothing could be tried where torch itself cannot be
