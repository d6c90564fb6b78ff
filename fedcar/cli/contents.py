"""`fedcar list, info`: what stands in a folder, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcar.cli.options import FOLDER, as_json
from fedcar.cli.output import echo, print_json
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from fedcar.export.bundle import Bundle
    from fedcar.retriever.parts import Parts


@click.command("list")
@click.argument("retriever", metavar="RETRIEVER|BUNDLE", type=FOLDER)
@as_json
def list_documents(retriever: Path, as_json: bool) -> None:
    """List the documents: id, whether questions trained a row for it, title."""
    opened = _opened(retriever)
    if opened is None:
        raise FedcarError(f"{retriever}: no retriever and no bundle; give the folder of one")
    rows = zip(opened.documents, opened.has_row.tolist(), strict=True)
    documents = [{"id": document.id, "title": document.title, "row": row} for document, row in rows]
    if as_json:
        print_json({"retriever": str(retriever), "documents": documents})
        return
    from fedcar.cli.tables import one_line

    for one in documents:
        echo(f"{one_line(one['id'])}\t{'row' if one['row'] else '-'}\t{one_line(one['title'])}")


@click.command()
@click.argument("folder", metavar="RETRIEVER|BUNDLE|COLLECTION", type=FOLDER)
@as_json
def info(folder: Path, as_json: bool) -> None:
    """Tell what a folder is: method, encoder, documents, privacy, version, size."""
    opened = _opened(folder)
    about = {"folder": str(folder)} | (_of_collection(folder) if opened is None else _of_searcher(opened))
    about["bytes"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if as_json:
        print_json(about)
        return
    for name, value in about.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        said = ", ".join(f"{part} {one}".strip() for part, one in parts if one is not None)
        if said:
            echo(f"{name}: {said}")


def _opened(folder: Path) -> Parts | Bundle | None:
    """What the folder holds; None where it is neither retriever nor bundle."""
    from fedcar.common.folders import kind_of

    kind = kind_of(folder)
    if kind == "bundle":
        from fedcar.export.bundle import load_bundle

        return load_bundle(folder)
    if kind == "retriever":
        from fedcar.retriever.parts import read_parts

        return read_parts(folder, mapped=True)
    return None


def _of_searcher(opened: Parts | Bundle) -> dict[str, Any]:
    from fedcar.collection.languages import name_of
    from fedcar.privacy.statement import upgraded
    from fedcar.retriever.parts import Parts

    if isinstance(opened, Parts):
        training, encoder = opened.training, opened.encoder
        statement = upgraded(dict(training.privacy)) if training.privacy else {}
        about: dict[str, Any] = {"kind": "retriever", "version": opened.version, "method": training.method}
        about["encoder"] = {name: encoder[name] for name in ("name", "pooling", "fingerprint")}
        manner = encoder.get("manner", {})
        about["encoder"] |= {name: manner[name] for name in ("query_prompt", "document_prompt") if manner.get(name)}
        if (second := encoder.get("beside")) is not None:
            about["beside"] = {name: second[name] for name in ("name", "pooling", "fingerprint")}
        about |= {"adapter": opened.adapter_variant, "precision": "fp32"}
        trained = {"collection": (training.collection or {}).get("name"), "questions": training.questions}
    else:
        origin = opened.origin
        statement = origin.get("privacy", {})
        about = {"kind": "bundle", "version": origin.get("fedcar"), "method": origin.get("method")}
        about["encoder"] = {"name": origin.get("encoder"), "pooling": opened.encoder.pooling}
        about["encoder"]["fingerprint"] = origin.get("fingerprint")
        about["encoder"] |= {"query_prompt": opened.encoder.prompt} if opened.encoder.prompt else {}
        if (stored := opened.encoder.beside) is not None:
            second = origin.get("beside", {})
            about["beside"] = {"name": second.get("encoder"), "pooling": stored.pooling}
            about["beside"]["fingerprint"] = second.get("fingerprint")
        about |= {"adapter": opened.encoder.adapter, "precision": opened.encoder.precision}
        trained = {"collection": origin.get("collection"), "questions": origin.get("questions")}
    language = opened.evidence.wording.language
    about["language"] = name_of(language) if language is not None else None
    about |= {"documents": len(opened.documents), "rows": int(opened.has_row.sum()), **trained}
    return about | {name: statement.get(name) for name in ("epsilon", "delta", "unit")}


def _of_collection(folder: Path) -> dict[str, Any]:
    from fedcar.collection.collection import SPLITS, Collection
    from fedcar.collection.languages import name_of, recognised

    collection = Collection.read(folder)
    clients = {query.client for query in collection.queries.values()} - {None}
    return {
        "kind": "collection",
        "documents": len(collection.documents),
        "language": name_of(recognised([document.full_text for document in collection.documents]).language),
        "queries": len(collection.queries),
        "judged": {split: len(collection.judged(split)) for split in SPLITS},
        "unanswerable": sum(not query.answerable for query in collection.queries.values()),
        "clients": len(clients),
    }


COMMANDS = (list_documents, info)
