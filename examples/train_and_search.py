"""Train on questions that have answers, compare with search, then ask: python examples/train_and_search.py [ENCODER].

The collection is the packaged one: service documents of a robot fleet, and what its sites ask.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fedcar import Collection, Retriever, evaluate, train
from fedcar.collection.demo import FOLDER


def main(encoder: str = "all-MiniLM-L6-v2") -> None:
    collection = Collection.read(FOLDER)
    retriever = train(collection, encoder=encoder, method="ridge")

    systems = evaluate(retriever, collection, "test")["systems"]
    for name in ("bm25", "mips", "hybrid", "retriever"):  # always side by side, on questions that were held out
        print(f"{name:10} success@1 {systems[name]['all']['success@1']:.3f}")

    with TemporaryDirectory() as folder:
        retriever.save(Path(folder) / "retriever")
        again = Retriever.load(Path(folder) / "retriever")  # offline; one changed byte would be refused
    answer = again.search("the hippo leaves water behind", k=3)
    print({True: "answered", False: "it does not know", None: answer.reason}[answer.answered])
    for hit in answer:
        sure = "" if hit.confidence is None else f"{hit.confidence:.2f} "  # None where no dev questions support one
        print(f"{sure}{hit.id}: {hit.title}")


if __name__ == "__main__":
    main(*sys.argv[1:])
