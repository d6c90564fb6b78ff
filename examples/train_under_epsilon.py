"""Protect every training question, and show what is promised: python examples/train_under_epsilon.py [ENCODER].

With these few questions search would be better and cost nothing: without `against_advice` it would be kept.
"""

import json
import sys
import warnings

from fedcar import Collection, FedcarWarning, train
from fedcar.collection.demo import FOLDER
from fedcar.privacy.statement import from_json, plain_words


def main(encoder: str = "all-MiniLM-L6-v2") -> None:
    warnings.simplefilter("ignore", FedcarWarning)
    collection = Collection.read(FOLDER)
    retriever = train(collection, encoder=encoder, method="head", epsilon=3.0, delta=1e-4, against_advice=True)

    claim = retriever.training.privacy  # saved as privacy.json in the retriever's folder
    print(f"epsilon {claim['epsilon']:.2f}, delta {claim['delta']:g}, unit {claim['unit']}")
    for release in claim["releases"]:
        print(
            f"given out {release['steps']} times: {release['name']}, noise multiplier {release['noise_multiplier']:.2f}"
        )
    print(plain_words(from_json(json.dumps(claim))))


if __name__ == "__main__":
    main(*sys.argv[1:])
