"""What a federation is set to, all of it; and which settings are refused."""

from __future__ import annotations

from dataclasses import dataclass

from fedcar.errors import FedcarError

CHOICES = {
    "weight": ("step", "question", "row"),
    "average": ("auto", "mean", "clipped", "trimmed"),
    "server_optimizer": ("average", "adam"),
    "local_optimizer": ("shared", "kept", "reset"),
    "share": ("adapter+head", "adapter"),
    "compression": ("none", "bfloat16", "int8"),
}
TINY, LARGE = 1e-12, 1e12
RANGES = (
    ("participation", 1e-6, 1.0),
    ("quorum", 1e-6, 1.0),
    ("trim", 0.0, 0.49),
    ("seed", 0, LARGE),
    ("deadline", TINY, LARGE),
    ("server_rate", TINY, LARGE),
    ("weight_cap", 1.0, LARGE),
    ("norm_factor", 1.0, LARGE),
    ("proximal", 0.0, LARGE),
)


@dataclass(frozen=True)
class RoundSettings:
    """Equal settings on equal data give the same retriever; every client gets them with the state.

    `rounds`: 0 stands for as many as make the epochs of central training.
    `weight`: an update counts n_i / n (`question`); that, times the mean number of local steps over its own, so that
    the few steps of a small client count as much a question as the many of a large one (`step`, FedNova, Wang et al.
    2020; with equal numbers of steps the same as n_i / n); or each row n_id / n_d over the clients with questions of
    that document (`row`). `weight_cap`: n_i counts at most this many times the cohort's (lower) median.
    `norm_factor`: an update longer than this many times the cohort's (lower) median length is refused.
    `average`: `clipped` cuts updates to 1.5 times the cohort's usual length and counts n_i at most three times the
    median, `auto` does so from five clients on and takes the `mean` below; `trimmed` leaves out the share `trim` of the
    values at either end of every coordinate and ignores the weights (Yin et al. 2018). `server_optimizer`: `adam` is
    FedAdam (Reddi et al. 2021); `server_rate` multiplies the averaged step (`average`) or is Adam's rate. `proximal`:
    mu of FedProx (Li et al. 2020). `local_optimizer`: `shared` averages the clients' Adam moments as it averages the
    tensors, so that a client without questions of a document moves its row by the gradient's size, not by Adam's full
    step; `kept` carries a client's own moments from round to round, `reset` starts each round without. `deadline` in
    seconds by the clock. `questions` is the federation's n, by which the penalty on the rows is scaled, `batch_size`
    that of local training.
    """

    rounds: int = 0
    local_epochs: int = 1
    seed: int = 0
    participation: float = 1.0
    quorum: float = 0.5
    attempts: int = 3
    deadline: float | None = None
    weight: str = "step"
    weight_cap: float = 10.0
    norm_factor: float = 10.0
    average: str = "auto"
    trim: float = 0.2
    server_optimizer: str = "average"
    server_rate: float = 1.0
    local_optimizer: str = "shared"
    proximal: float = 0.0
    share: str = "adapter+head"
    compression: str = "none"
    private_documents: bool = False
    questions: int = 0
    batch_size: int = 1

    def check(self) -> None:
        """Raise FedcarError for the first value that makes no sense."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                _refuse(name, f'"{getattr(self, name)}"', f"not known; give one of {', '.join(allowed)}")
        if self.private_documents and self.weight != "row":
            _refuse("weight", self.weight, "with --private-documents a row is trained by its owners alone; give row")
        for name, least in (("rounds", 0), ("local_epochs", 1), ("attempts", 1)):
            if getattr(self, name) < least:
                _refuse(name, getattr(self, name), "must be 1 or more")
        for name, lowest, highest in RANGES:
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                most = highest < LARGE or value > highest
                _refuse(name, value, f"must be from {lowest:g} to {highest:g}" if most else f"must be {_least(lowest)}")


def _refuse(name: str, value: object, rule: str) -> None:
    raise FedcarError(f"--{name.replace('_', '-')} {value}: {rule}")


def _least(lowest: float) -> str:
    return f"{lowest:g} or more" if lowest in (0, 1) else "above 0"
