"""Export: the trained encoder as a stock Hugging Face folder, with the vectors of the documents beside it."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fedcar.collection.collection import check_free, document_line
from fedcar.common.files import write_json
from fedcar.common.folders import new_folder
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.manner import FLAGS, modules_of
from fedcar.encoder.model import FrozenModel
from fedcar.encoder.model_files import read_json
from fedcar.encoder.reading import padded
from fedcar.encoder.runtimes import onnx_file
from fedcar.encoder.runtimes.onnx import OnnxRuntime
from fedcar.encoder.runtimes.onnx_file import PRECISIONS
from fedcar.encoder.stored_writing import check_states
from fedcar.errors import FedcarError, FedcarWarning, first_line, quoted
from fedcar.export.bundle_writing import write_bundle
from fedcar.head.head import Head
from fedcar.retriever.retriever import Retriever

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("transformers", "onnx", "bundle")
MODULES = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")
PROBES = 16
README = """# A fedcar retriever's encoder, for any program that reads Hugging Face folders

The model is {encoder}, {adapter}.{prompt}

{files}
- `documents.jsonl`: the {documents} documents, one a line, in the order of the vectors.
- `rows.safetensors`: `embeddings` ({documents}, {dimension}), the documents' vectors of unit length from the encoder
  *before* training (take these, do not encode the documents again; 0 for an empty document, which is no answer);
  `rows`, what training has added to each, 0 where it never touched a document; what else the formula below names.

The score of the head, for a question's vector as a row q:

{steps}

That is a part of what `fedcar search` on the retriever itself does. Left out here:
{left_out}.
"""
FILES = """\
- `config.json`, `model.safetensors`, `tokenizer.json` and their like: for `AutoModel` and `AutoTokenizer`. Pooling
  `{pooling}`, texts cut at {tokens} tokens, padding on the right.
- `modules.json`, `sentence_bert_config.json`, `1_Pooling/`: the same for `SentenceTransformer(FOLDER)`. Vectors are not
  normalised; compare them by cosine."""
ONNX_FILES = """\
- `model.onnx`: from `input_ids` and `attention_mask` (n, t), int64, padded on the right with any token, to `pooled`
  (n, d), the texts' vectors (pooling `{pooling}`, not normalised; compare them by cosine), `token_states` (n, t, d) and
  `layers` (n, k, d), the mean states of some lower layers.
- `tokenizer.json`: for `tokenizers.Tokenizer.from_file`; it cuts at {tokens} tokens. The mask is 1 for each token of a
  text and 0 for what fills it up."""
TOLERANCE = 1e-4
COMMON = ("mean", "lasttoken", "cls")  # whose flags stand in every folder


def export(
    retriever: Retriever, folder: str | Path, export_format: str = "transformers", precision: str = "fp32"
) -> None:
    """Write the encoder with its adapter folded in, the documents, their vectors and a README into a new folder.

    `onnx` writes the encoder as `model.onnx` and `tokenizer.json` in place of the Hugging Face files, `bundle` the
    whole retriever for a machine without torch (see `fedcar.export.bundle`); both in fp32 or int8. What follows is
    about `transformers`.

    `AutoModel`, `AutoTokenizer` and `SentenceTransformer` read the folder without code of fedcar's, and give the hidden
    states that `Encoder.encode` gives (to 1e-5 of vectors of ordinary length; not normalised). The retriever is not
    changed. The folder appears whole or not at all, and is checked before it does: the tokenizer must make the same
    tokens of some documents, the model the same hidden states.

    Two things a stock folder cannot express: with pooling `last` a text that itself ends in the written EOS token gets
    another one here, and a text without any token gives nothing where the tokenizer adds no special token.

    Raises FedcarError where the folder exists and is not empty, or where the tokenizer cannot be told to end in EOS.

    Formal guarantees:
        exported_equals_fedcar: AutoModel and SentenceTransformer give the embeddings of the retriever's encoder.
    """
    check_export(Path(folder), export_format, precision)
    if export_format == "bundle":
        write_bundle(retriever, folder, precision)
        return
    if retriever.encoder.beside is not None:
        message = "its rows are over two encoders, and a stock folder holds one; give --format bundle"
        raise FedcarError(f"--format {export_format}: {message}")
    try:
        with new_folder(Path(folder)) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore", FedcarWarning)  # about the encoder, said when it was loaded
            if export_format == "onnx":
                _write_onnx(retriever, temporary, precision)
            else:
                _write(retriever, temporary)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise FedcarError(f"{folder}: cannot be written ({reason}); free space or choose another folder") from error


def check_export(folder: Path, export_format: str, precision: str = "fp32") -> None:
    """Refuse a format that is not known, one that cannot be had in this precision, and a folder that is not free."""
    if export_format not in FORMATS:
        raise FedcarError(f"--format {quoted(export_format)}: not known; give one of {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise FedcarError(f"--precision {quoted(precision)}: not known; give one of {', '.join(PRECISIONS)}")
    if export_format == "transformers" and precision != "fp32":
        raise FedcarError(f"--precision {precision}: a stock folder holds float32; give --format onnx or bundle")
    check_free(folder)


def _write(retriever: Retriever, folder: Path) -> None:
    encoder = _folded(retriever.encoder)
    encoder.model.transformer.save_pretrained(folder)
    _write_tokenizer(encoder, folder)
    _write_modules(encoder, folder)
    _write_documents(retriever, folder)
    (folder / "README.md").write_text(_readme(retriever, FILES), encoding="utf-8", newline="\n")
    _check(retriever, folder)


def _write_onnx(retriever: Retriever, folder: Path, precision: str) -> None:
    """The encoder for ONNX Runtime, its tokenizer for the library `tokenizers`, documents and vectors as ever."""
    encoder = _folded(retriever.encoder)
    onnx_file.write(encoder.model, folder / "model.onnx", precision)
    with tempfile.TemporaryDirectory() as settings:
        _write_tokenizer(encoder, Path(settings))
        tokenizer = Path(settings) / "tokenizer.json"
        if not tokenizer.is_file():
            message = "its tokenizer has no tokenizer.json; take --format transformers"
            raise FedcarError(f"{retriever.encoder.folder}: {message}")
        content = read_json(tokenizer)
    content["truncation"] = {"direction": "Right", "max_length": encoder.model.max_tokens, "strategy": "LongestFirst"}
    content["truncation"]["stride"] = 0
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    _write_documents(retriever, folder)
    (folder / "README.md").write_text(_readme(retriever, ONNX_FILES), encoding="utf-8", newline="\n")
    _check_onnx(retriever, folder, precision)


def _write_documents(retriever: Retriever, folder: Path) -> None:
    """The documents, one a line, and their vectors in the same order."""
    save_file(_vectors(retriever.head), folder / "rows.safetensors")
    with (folder / "documents.jsonl").open("w", encoding="utf-8", newline="\n") as stream:
        for document in retriever.documents:
            stream.write(f"{document_line(document)}\n")


def _folded(encoder: Encoder) -> Encoder:
    """The same encoder with tokenizer and model of its own, and the adapter in the embedding table."""
    model = encoder.model
    fresh = Encoder(FrozenModel(model.folder, model.name, model.pooling, model.revision, model.manner))
    return fresh.with_adapter(encoder.adapter).folded()


# -------------------------------------------------------------------- the folder


def _write_tokenizer(encoder: Encoder, folder: Path) -> None:
    """The tokenizer as fedcar uses it: cut at `max_tokens`, padded on the right, EOS behind where pooling is `last`."""
    tokenizer, padding = encoder.tokenizer, encoder.model.padding_id
    end = encoder.model.end
    ends = tokenizer("")["input_ids"][-1:] == [end]
    tokenizer.model_max_length = encoder.model.max_tokens
    tokenizer.padding_side = "right"
    tokenizer.chat_template = None  # SentenceTransformer would write a question as a chat
    special = {*tokenizer.all_special_ids, *(n for n, token in tokenizer.added_tokens_decoder.items() if token.special)}
    wanted = (padding, tokenizer.pad_token_id, tokenizer.eos_token_id, *sorted(special))
    usable = [number for number in wanted if number in special and number < encoder.model.model_config.vocab_size]
    if usable:  # none: there is nothing to pad with, so texts go through one by one
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(usable[0])
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    if file.is_file():
        content = read_json(file) | {"truncation": None, "padding": None}
        if end is not None and not ends:
            content["post_processor"] = _with_end(content["post_processor"], tokenizer.eos_token, end)
            settings = read_json(folder / "tokenizer_config.json")
            for rebuilt in ("add_bos_token", "add_eos_token"):  # from which the post-processor would be made anew
                settings.pop(rebuilt, None)
            write_json(folder / "tokenizer_config.json", settings)
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _with_end(processor: dict[str, Any] | None, token: str, number: int) -> dict[str, Any]:
    """A tokenizer's post-processor that puts one more special token behind every text."""
    steps = [] if processor is None else processor.get("processors", [processor])
    template = next((step for step in steps if step["type"] == "TemplateProcessing"), None)
    if template is None:
        sequence = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
        template = {"type": "TemplateProcessing", "single": sequence[:1], "pair": sequence, "special_tokens": {}}
        steps = [*steps, template]
    for name in ("single", "pair"):
        template[name].append({"SpecialToken": {"id": token, "type_id": 0}})
    template["special_tokens"][token] = {"id": token, "ids": [number], "tokens": [token]}
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "processors": steps}


def _write_modules(encoder: Encoder, folder: Path) -> None:
    """What SentenceTransformer reads, in words that every version of it knows: model, pooling, the rest."""
    manner, kinds = encoder.model.manner, dict(modules_of(encoder.folder))
    paths = ("", "1_Pooling", *(f"{place}_{kinds[name]}" for place, name in enumerate(manner.modules, 2)))
    names = (*MODULES, *(f"sentence_transformers.models.{kinds[name]}" for name in manner.modules))
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": name}
        for number, (path, name) in enumerate(zip(paths, names, strict=True))
    ]
    pooling: dict[str, object] = {"word_embedding_dimension": encoder.width}
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": encoder.model.max_tokens, "do_lower_case": False}
    )
    prompts = {"query": manner.query_prompt, "document": manner.document_prompt}
    about = {"similarity_fn_name": "cosine", **({"prompts": prompts} if any(prompts.values()) else {})}
    write_json(folder / "config_sentence_transformers.json", about)
    (folder / "1_Pooling").mkdir()
    chosen = ["lasttoken" if kind == "last" else kind for kind in encoder.pooling.split("+")]
    pooling |= {flag: mode in chosen for flag, mode in FLAGS.items() if mode in chosen or mode in COMMON}
    if len(chosen) > 1:  # the flags tell no order
        pooling["pooling_mode"] = chosen
    if not manner.include_prompt:
        pooling["include_prompt"] = False
    for path, name in zip(paths[2:], manner.modules, strict=True):
        (folder / path).mkdir()
        for file in sorted((encoder.folder / name).iterdir()):
            if file.suffix in (".json", ".safetensors"):
                shutil.copyfile(file, folder / path / file.name)
    write_json(folder / "1_Pooling" / "config.json", pooling)


def _vectors(head: Head) -> dict[str, NDArray[np.float32]]:
    """The head as plain arrays; rows of documents that training never touched are 0."""
    tensors = {name: tensor.detach().numpy() for name, tensor in head.state_dict().items()}
    active = tensors.pop("active")
    tensors["rows"] = tensors["rows"] * active[:, None]
    tensors["scale"] = np.exp(tensors.pop("log_scale")).reshape(1)
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in tensors.items()}


def _readme(retriever: Retriever, files: str) -> str:
    encoder, head = retriever.encoder, retriever.head
    variant = encoder.adapter.variant if encoder.adapter is not None else None
    adapter = f"its adapter ({variant}) folded into the embedding table" if variant else "unchanged"
    steps = [f"q = model.{'encode_query' if encoder.prompt else 'encode'}(question); q /= norm(q)"]
    if head.pre_classifier:
        steps.append("q += gelu(q @ inner.T) @ outer.T; q /= norm(q)")
    if head.kind == "cosine":
        steps.append("v = embeddings + rows; v /= norm(v); score = scale * (q @ v.T)")
    else:
        steps += ["x = q - centre; x /= norm(x)", "score = scale * (q @ embeddings.T + x @ rows.T)"]
    if head.query_map:
        steps.append("score += (q @ map.T) @ embeddings.T")
    left_out = ["the mixture with words, sentences and tokens", "the calibration"]
    if retriever.evidence.windows.number:
        left_out.insert(0, "the windows of long documents, of which search takes the best")
    if retriever.evidence.view is not None:
        left_out.insert(0, "the view that cosines are taken in: the plain cosines of this encoder say little")
    if retriever.ridge is not None:
        left_out.insert(0, "the rows in closed form and the words of the training questions, which are no vectors of h")
    return README.format(
        encoder=Path(encoder.name).name if Path(encoder.name).exists() else encoder.name,
        adapter=adapter,
        prompt="".join(
            f" Every {what} is read with {one.prompt!r} in front of it."
            for what, one in (("question", encoder), ("document", encoder.for_documents))
            if one.prompt
        ),
        files=files.format(pooling=encoder.pooling, tokens=encoder.model.max_tokens),
        documents=len(retriever.documents),
        dimension=encoder.dimension,
        steps="\n".join(f"    {step}" for step in steps),
        left_out=";\n".join(left_out),
    )


def _probes(retriever: Retriever) -> list[str]:
    texts = [document.full_text for document in retriever.documents if document.full_text][:PROBES]
    return [*texts, "who?", "Is it 3.5 % or more"]


def _check_onnx(retriever: Retriever, folder: Path, precision: str) -> None:
    """Refuse a file that would not give what the retriever's encoder gives, by the two libraries that read it."""
    from tokenizers import Tokenizer

    texts, encoder = _probes(retriever), retriever.encoder
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [
        one.ids or [encoder.model.padding_id]
        for one in tokenizer.encode_batch([encoder.prompt + text for text in texts])
    ]
    if ids != encoder.tokenize(texts):
        message = "its tokenizer cannot be exported so that it makes the same tokens; train with --pooling mean"
        raise FedcarError(f"{encoder.folder}: {message}")
    runtime = OnnxRuntime(folder / "model.onnx")
    states = np.concatenate(
        [runtime.run(*padded([one], encoder.model.padding_id, encoder.left_out)).pooled for one in ids]
    )
    check_states(encoder, "the ONNX file", precision, texts, states)


def _check(retriever: Retriever, folder: Path) -> None:
    """Refuse a folder that would not give what the retriever's encoder gives."""
    from transformers import AutoTokenizer

    texts = _probes(retriever)
    ids = retriever.encoder.tokenize(texts)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    prompted = [retriever.encoder.prompt + text for text in texts]
    if list(map(list, tokenizer(prompted, truncation=True)["input_ids"])) != ids:
        raise FedcarError(
            f"{retriever.encoder.folder}: its tokenizer cannot be exported so that it makes the same tokens; "
            "train with --pooling mean, or use the retriever itself"
        )
    exported = Encoder(FrozenModel(folder, str(folder))).encode(texts)
    expected = retriever.encoder.encode(texts)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    if not np.allclose(exported / lengths, expected / lengths, atol=TOLERANCE):
        message = "the exported model gives other hidden states; use the retriever itself"
        raise FedcarError(f"{retriever.encoder.folder}: {message}")
