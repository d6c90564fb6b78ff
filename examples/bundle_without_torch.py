"""Export a bundle and search it where torch is not imported: python examples/bundle_without_torch.py [ENCODER]."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fedcar import Collection, train
from fedcar.collection.demo import FOLDER
from fedcar.export.stock import export

SEARCH = """
import sys
from fedcar.export.bundle import load_bundle
bundle = load_bundle(sys.argv[1])  # onnxruntime, tokenizers and numpy are all it needs
for hit in bundle.search(sys.argv[2], k=3):
    sure = "" if hit.confidence is None else f"{hit.confidence:.2f} "  # None where no dev questions support one
    print(f"{sure}{hit.id}: {hit.title}")
print("torch was imported:", "torch" in sys.modules)
"""


def main(encoder: str = "all-MiniLM-L6-v2") -> None:
    retriever = train(Collection.read(FOLDER), encoder=encoder, method="ridge")
    with TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export(retriever, bundle, "bundle")
        megabytes = sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
        print(f"{megabytes:.1f} MB; {(bundle / 'requirements.txt').read_text().split()}", flush=True)
        subprocess.run([sys.executable, "-c", SEARCH, str(bundle), "the hippo leaves water behind"], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
