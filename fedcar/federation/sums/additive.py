"""One round with statistics that add up: federated equals central, a client joins late or is removed exactly.

fedcar's runs add statistics up and keep none of them. Library: `check_statistics`, `write_statistics`,
`read_statistics`, `without` and `subtract`, for a server of your own that keeps each client's statistics and must
forget one later. No command does that, as weights, calibration and record of a run still know the client.

    >>> parts = {name: {"counts": torch.tensor([number, 1])} for number, name in enumerate(("a", "b", "c"))}
    >>> total(without(parts, "b"))["counts"].tolist()  # bit by bit as if b had never been there
    [2.0, 2.0]
    >>> subtract(total(parts), parts["b"])["counts"].tolist()  # where only the sum was kept
    [2.0, 2.0]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median_low

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedcar.common.files import write_json
from fedcar.common.folders import check_folder, write_folder
from fedcar.errors import FedcarError, quoted
from fedcar.federation.rounds.compress import form
from fedcar.federation.rounds.run_folder import refuse_another
from fedcar.head.closed_form import Statistics as ClosedForm

KIND = "statistics"

Statistics = Mapping[str, Tensor]


def sums_of(statistics: ClosedForm) -> dict[str, Tensor]:
    """The closed form's statistics as named tensors; of the gram (D, D) the upper triangle (D (D + 1) / 2,)."""
    above = np.triu_indices(len(statistics.gram))
    return {
        "gram": torch.from_numpy(statistics.gram[above]),
        "cross": torch.from_numpy(np.ascontiguousarray(statistics.cross)),
        "counts": torch.from_numpy(statistics.counts.astype(np.int64)),
        "questions": torch.tensor(statistics.questions),
    }


def statistics_of(sums: Statistics) -> ClosedForm:
    """What `sums_of` was given, or the sum of several."""
    cross = sums["cross"].float().numpy()
    gram = np.zeros((len(cross), len(cross)), dtype=np.float32)
    above = np.triu_indices(len(cross))
    gram[above] = sums["gram"].float().numpy()
    gram.T[above] = gram[above]
    return ClosedForm(gram, cross, sums["counts"].long().numpy(), int(sums["questions"]))


def total(parts: Mapping[str, Statistics]) -> dict[str, Tensor]:
    """The sum over clients, in the order of their names, in float64.

    Formal guarantees:
        ridge_federated_equals_central: the sum over any partition is that over all questions, up to rounding (1e-12).
        removing_a_client_equals_never_having_it: the sum without a client is, bit by bit, the sum of the others.
    """
    names = sorted(parts)
    if not names:
        raise FedcarError("no client's statistics are left to add up; keep at least one client")
    result = {name: tensor.double().clone() for name, tensor in parts[names[0]].items()}
    for client in names[1:]:
        result = add(result, parts[client])
    return result


def add(statistics: Statistics, part: Statistics) -> dict[str, Tensor]:
    """A client joins: the sum with its statistics, where the server keeps but the sum."""
    return {name: tensor + part[name].double() for name, tensor in statistics.items()}


def subtract(statistics: Statistics, part: Statistics) -> dict[str, Tensor]:
    """A client leaves: the sum without what it gave, equal to never having had it up to rounding (1e-12)."""
    return {name: tensor - part[name].double() for name, tensor in statistics.items()}


def check_statistics(
    parts: Mapping[str, Statistics], questions: Mapping[str, int], template: Statistics, norm_factor: float
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """The statistics that may be added up, and the refused clients with the reason.

    Each on its own: names, shapes and dtypes of the template, finite, n_i from 1. Against the others: the length a
    question within `norm_factor` times the lower median.
    """
    passed: dict[str, Statistics] = {}
    refused: dict[str, str] = {}
    for client, part in parts.items():
        reason = _reason_to_refuse(part, questions.get(client, 0), template)
        if reason is None:
            passed[client] = part
        else:
            refused[client] = reason
    lengths = {client: _length(part) / questions[client] for client, part in passed.items()}
    usual = median_low([value for value in lengths.values() if value > 0] or [0.0])
    for client, value in lengths.items():
        if value > norm_factor * usual:
            refused[client] = (
                f"length {value:.3g} a question, above {norm_factor:g} times the clients' median {usual:.3g}"
            )
            del passed[client]
    return passed, refused


def _reason_to_refuse(part: Statistics, questions: int, template: Statistics) -> str | None:
    if type(questions) is not int or questions < 1:
        return f"{quoted(questions)} questions"
    if set(part) != set(template):
        return f"tensors {quoted(sorted(part))}, not {quoted(sorted(template))}"
    for name, tensor in part.items():
        if tensor.dtype != template[name].dtype or tensor.shape != template[name].shape:
            return f"{name!r} is {form(tensor)}, not {form(template[name])}"
        if not torch.isfinite(tensor).all():
            return f"{name!r} is not finite"
    return None


def _length(part: Statistics) -> float:
    sizes = [tensor.double().square().sum() for tensor in part.values() if tensor.is_floating_point()]
    return float(torch.stack(sizes).sum().sqrt())


# -------------------------------------------------------------------- each client's statistics, kept in the run folder


def write_statistics(
    folder: Path, parts: Mapping[str, Statistics], questions: Mapping[str, int], belongs_to: Mapping[str, object]
) -> None:
    """Keep every client's statistics, one file a client, in a sealed folder that is replaced in one step."""

    def fill(place: Path) -> None:
        files = {client: f"{hashlib.sha256(client.encode()).hexdigest()[:24]}.safetensors" for client in sorted(parts)}
        for client, file in files.items():
            save_file({name: tensor.contiguous() for name, tensor in parts[client].items()}, place / file)
        record = {client: {"file": file, "questions": questions[client]} for client, file in files.items()}
        write_json(place / "clients.json", {"belongs_to": dict(belongs_to), "clients": record})

    write_folder(folder, KIND, fill, private=True)


def read_statistics(folder: Path, belongs_to: Mapping[str, object]) -> tuple[dict[str, Statistics], dict[str, int]]:
    """The statistics by client, and their questions; refuses those of another collection, encoder or setting."""
    check_folder(folder, KIND)
    record = json.loads((folder / "clients.json").read_text(encoding="utf-8"))
    refuse_another(folder, record["belongs_to"], belongs_to)
    clients = record["clients"]
    return (
        {client: load_file(folder / entry["file"]) for client, entry in clients.items()},
        {client: entry["questions"] for client, entry in clients.items()},
    )


def without(parts: Mapping[str, Statistics], client: str) -> dict[str, Statistics]:
    """The statistics of all other clients; refuses a client that is not there."""
    if client not in parts:
        raise FedcarError(f"--without {quoted(client)}: no such client in this run; it has {', '.join(sorted(parts))}")
    return {name: part for name, part in parts.items() if name != client}
