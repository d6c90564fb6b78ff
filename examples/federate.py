"""Six sites train one retriever, and no question leaves its site: python examples/federate.py [ENCODER].

Clients are simulated in this process. Over real machines the same rounds run by `fedcar serve`, `join` and `run`.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fedcar import Collection
from fedcar.collection.demo import FOLDER
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.federate import federate


def main(encoder: str = "all-MiniLM-L6-v2") -> None:
    collection = Collection.read(FOLDER)
    with TemporaryDirectory() as folder:
        result = federate(
            collection,
            run=Path(folder) / "run",  # history and a checkpoint after every round
            clients=None,
            kind="client",  # the natural partition: who asked
            encoder=encoder,
            method="head",
            rounds=RoundSettings(rounds=3),
        )
    for record in result.rounds:
        print(f"round {record.round}: {len(record.clients)} clients, on dev {record.selection:.3f}")
    if result.central and result.federated:
        print(
            f"success@1 in one place {result.central['success@1']:.3f}, over sites {result.federated['success@1']:.3f}"
        )
    print(f"{result.bytes_per_round:,} bytes a round; kept: {result.retriever.training.method}")


if __name__ == "__main__":
    main(*sys.argv[1:])
