"""What each reply may hold: every field with its type, size and range, by what the server knows before it asks.

The one border between devices and what is computed of their replies. `Schema.admit` looks at what a reply in parts
announces, before room is made for it; `Schema.parsed` at the whole reply, before anything else looks at it. Bounds
follow from what is known: documents and encoder, what the device enrolled with, what it said before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedcar.errors import first_line, quoted
from fedcar.federation.wire.payload import GIVEN, REASONS, UPDATE, Payload, ReplyError, Value, bytes_of
from fedcar.federation.wire.setup import HEAD
from fedcar.head.naive_bayes import BUCKETS

MOST_QUESTIONS = 1 << 31  # that anybody may have
MOST_GRAMS = 1 << 20  # different words and word pairs of one question
MOST_FEATURE = 1e6  # of a candidate, in any of the mixture's features
MOST_TRAINED = 1e9  # of a coordinate that is trained, of its moments and of a loss
MOST_SECONDS = 1e8
WORDS = 1 << 28  # bytes of words that a device may send
ROUNDING = 1e-3  # relative; sums are rounded to float32, and norms are bounded in exact arithmetic

Size = int | tuple[int, int]  # of one dimension: exactly, or from and to
Together = Callable[[Payload], None]


@dataclass(frozen=True)
class Number:
    """A plain number of this type, from `least` to `most`; never NaN."""

    kind: type[int] | type[float]
    least: float
    most: float

    def check(self, name: str, value: Value) -> None:
        if type(value) is not self.kind:
            raise ReplyError(f"{name} is {type(value).__name__}, not {self.kind.__name__}")
        if not self.least <= value <= self.most:  # NaN is in no range
            raise ReplyError(f"{name} is {short(value)}, not from {self.least:.6g} to {self.most:.6g}")


@dataclass(frozen=True)
class Text:
    """A text that matches the pattern as a whole."""

    pattern: re.Pattern[str]
    most: int = 256

    def check(self, name: str, value: Value) -> None:
        if type(value) is not str or len(value) > self.most or not self.pattern.fullmatch(value):
            raise ReplyError(f"{name} is {short(value)}")


@dataclass(frozen=True)
class Numbers:
    """A tensor of this type and shape, all of it finite and from `least` to `most`."""

    dtype: torch.dtype
    shape: tuple[Size, ...]
    least: float
    most: float
    optional: bool = False

    @property
    def bytes(self) -> int:
        """The most that it may have."""
        sizes = [size if isinstance(size, int) else size[1] for size in self.shape]
        return math.prod(sizes) * self.dtype.itemsize

    def admit(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        fits = len(shape) == len(self.shape) and all(map(_fits, shape, self.shape))
        if dtype != self.dtype or not fits:
            raise ReplyError(f"{name} is {_form(dtype, shape)}, not {_form(self.dtype, self.shape)}")

    def check(self, name: str, tensor: Tensor) -> None:
        self.admit(name, tensor.dtype, tuple(tensor.shape))
        if not tensor.numel() or tensor.dtype == torch.bool:
            return
        least, most = (float(value) for value in tensor.aminmax())  # both are NaN where one element is
        if not self.least <= least <= most <= self.most:
            raise ReplyError(
                f"{name} has values from {least:.6g} to {most:.6g}, not within {self.least:.6g} to {self.most:.6g}"
            )


@dataclass(frozen=True)
class Schema:
    """One kind of reply: its values and tensors, and what must hold `together` once each is right by itself."""

    kind: str
    values: Mapping[str, Number | Text] = field(default_factory=dict)
    tensors: Mapping[str, Numbers] = field(default_factory=dict)
    together: Together = lambda reply: None

    @property
    def bytes(self) -> int:
        """The bytes that a reply's tensors may have."""
        return sum(numbers.bytes for numbers in self.tensors.values())

    def admit(self, values: Mapping[str, Value], forms: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        """ReplyError unless a reply may have these values, and tensors of these types and shapes."""
        if set(values) != set(self.values):
            raise ReplyError(f"fields {quoted(sorted(values))}, not {sorted(self.values)}")
        for name, rule in self.values.items():
            rule.check(name, values[name])
        if unknown := set(forms) - set(self.tensors):
            raise ReplyError(f"unknown tensor {quoted(min(unknown))}")
        for name, numbers in self.tensors.items():
            if name in forms:
                numbers.admit(name, *forms[name])
            elif not numbers.optional:
                raise ReplyError(f"no tensor {name!r}")
        size = sum(bytes_of(dtype, shape) for dtype, shape in forms.values())
        if size > self.bytes:
            raise ReplyError(f"{size} bytes, above {self.bytes}")

    def parsed(self, reply: Payload) -> Payload:
        """The reply itself; ReplyError, with one line of reason, where anything about it is wrong."""
        try:
            if reply.kind != self.kind:
                raise ReplyError(f"answered {quoted(reply.kind)} to {self.kind!r}")
            self.admit(reply.values, {name: (one.dtype, tuple(one.shape)) for name, one in reply.tensors.items()})
            for name, tensor in reply.tensors.items():
                self.tensors[name].check(name, tensor)
            self.together(reply)
        except ReplyError:
            raise
        except Exception as error:  # whatever a reply is, it ends nothing but itself
            raise ReplyError(f"{type(error).__name__}: {first_line(error)}") from error
        return reply


def short(value: object) -> str:
    """A value as it may stand in a message: whole numbers of any size among them."""
    if isinstance(value, int) and not -(10**30) < value < 10**30:
        return f"a number of {value.bit_length()} bits"
    return quoted(value)


def _fits(size: int, allowed: Size) -> bool:
    return size == allowed if isinstance(allowed, int) else allowed[0] <= size <= allowed[1]


def _form(dtype: torch.dtype, shape: tuple[Size, ...]) -> str:
    sizes = ", ".join(str(size) if isinstance(size, int) else f"{size[0]} to {size[1]}" for size in shape)
    return f"{str(dtype).removeprefix('torch.')} ({sizes})"


# -------------------------------------------------------------------- plain fields

SPENT = Number(float, 0.0, math.inf)
REASON = Text(re.compile("|".join(map(re.escape, REASONS))))
REFUSED = Schema("refused", {"reason": REASON, "found": Text(re.compile("[ -~]*"), 64)})
GREET = Schema("greet")


def _counted(most: int, least: int = 0) -> Number:
    return Number(int, least, most)


def _exactly(number: int) -> Number:
    return Number(int, number, number)


def _require(holds: bool, line: str) -> None:
    if not holds:
        raise ReplyError(line)


# -------------------------------------------------------------------- one function a kind of reply


def enrol(documents: int) -> Schema:
    """n_i and n_id: no document has more questions than there are, and each question has a document."""

    def together(reply: Payload) -> None:
        questions, counts = int(reply.values["questions"]), reply.tensors["row_questions"]
        _require(int(counts.max()) <= questions, f"{int(counts.max())} of {questions} questions about one document")

    values = {"questions": _counted(MOST_QUESTIONS, 1), "held_out": _counted(MOST_QUESTIONS)}
    counts = Numbers(torch.int64, (documents,), 0, MOST_QUESTIONS)
    return Schema("enrol", values, {"row_questions": counts}, together)


def spread(width: int, documents: int, questions: int) -> Schema:
    """Squared distances of features (width,) and how many there are; each question has at most all documents.

    Of ridge a question is seen twice: by itself and in its document's fold.
    """

    def together(reply: Payload) -> None:
        speaking, counted = int(reply.values["speaking"]), float(reply.values["counted"])
        _require(counted <= speaking * (1 + ROUNDING), f"{speaking} questions that count {counted:.6g}")
        sums = reply.tensors["spread"]
        candidates = float(sums[-1])
        _require(2 * speaking <= candidates <= speaking * documents, f"{candidates:.6g} candidates of {speaking}")
        _require(bool((sums[:-1] <= candidates * MOST_FEATURE**2).all()), "features farther apart than any are")

    values = {"speaking": _counted(2 * questions), "counted": Number(float, 0.0, 2.0 * questions)}
    most = 2.0 * questions * documents * MOST_FEATURE**2
    return Schema("spread", values, {"spread": Numbers(torch.float64, (width + 1,), 0.0, most)}, together)


def sums(spread_sums: Tensor, speaking: int, weights: Tensor) -> Schema:
    """Loss, gradient and Hessian of questions whose features are so far apart, at the weights (F,).

    Of a question whose features have the squared distances S_j from their mean, the gradient is at most
    sqrt(2 S_j), the Hessian's diagonal at most 1.5 S_j: each is a difference, or a variance, of its candidates'
    features. Off the diagonal the bound is Cauchy and Schwarz's, as the loss is convex.
    """
    width, squares = len(spread_sums) - 1, spread_sums[:-1].double()
    candidates = max(2.0, float(spread_sums[-1]) / max(1, speaking))
    slopes = (2 * speaking * squares).sqrt() * (1 + ROUNDING) + ROUNDING
    curves = 1.5 * squares * (1 + ROUNDING) + ROUNDING
    loss = speaking * (math.log(candidates) + 1) + float(weights.double().abs() @ slopes)

    def together(reply: Payload) -> None:
        gradient, hessian = reply.tensors["gradient"], reply.tensors["hessian"]
        _require(bool((gradient.abs() <= slopes).all()), "a gradient that is longer than its questions can make it")
        diagonal = hessian.diagonal()
        _require(bool((diagonal <= curves).all()), "a Hessian that is larger than its questions can make it")
        slack = ROUNDING * (1.0 + float(diagonal.abs().sum()))
        _require(bool(((hessian - hessian.T).abs() <= slack).all()), "a Hessian that is not symmetric")
        least = float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[0])
        _require(least >= -slack, "a Hessian of no convex loss")

    tensors = {
        "gradient": Numbers(torch.float64, (width,), -float(slopes.max()), float(slopes.max())),
        "hessian": Numbers(torch.float64, (width, width), -float(curves.max()), float(curves.max())),
    }
    return Schema("sums", {"loss": Number(float, 0.0, loss)}, tensors, together)


def statistics(documents: int, dimension: int, questions: int, row_questions: Tensor) -> Schema:
    """Sums of ridge of the questions a device enrolled with; entry by entry see `forms.check_client`."""
    asked_about = int((row_questions > 0).sum())
    grams = min(WORDS // 8, int(row_questions.sum()) * MOST_GRAMS)
    most = questions * math.log2(1 + MOST_GRAMS)

    def together(reply: Payload) -> None:
        tensors = reply.tensors
        _require(len(tensors["columns"]) == tensors["cross"].shape[1], "cross terms of other columns")
        _require(len(tensors["data"]) == len(tensors["grams"]), "words of other shapes")
        _require(
            torch.equal(tensors["counts"], row_questions), f"other questions than the {questions} it enrolled with"
        )

    tensors = {
        "gram": Numbers(torch.float32, (dimension * (dimension + 1) // 2,), -1.1 * questions, 1.1 * questions),
        "columns": Numbers(torch.int64, ((0, asked_about),), 0, documents - 1),
        "cross": Numbers(torch.float32, (dimension, (0, asked_about)), -1.1 * questions, 1.1 * questions),
        "counts": Numbers(torch.int64, (documents,), 0, questions),
        "data": Numbers(torch.float32, ((0, grams),), 0.0, most),
        "grams": Numbers(torch.int32, ((0, grams),), 0, BUCKETS - 1),
        "starts": Numbers(torch.int64, (documents + 1,), 0, grams),
    }
    return Schema("statistics", {"questions": _exactly(questions)}, tensors, together)


def taught(strengths: int, questions: int) -> Schema:
    right = Numbers(torch.float64, (strengths,), 0.0, questions * (1 + ROUNDING))
    return Schema("taught", {}, {"right": right})


def unseen(questions: int, held_out: int) -> Schema:
    def together(reply: Payload) -> None:
        right, asked = float(reply.values["right"]), int(reply.values["questions"])
        _require(right <= asked, f"{right:.6g} of {asked} questions right")

    values = {
        "right": Number(float, 0.0, float(questions)), "questions": _counted(questions),
        "held_out": _exactly(held_out), "held_out_right": _counted(held_out),
    }  # fmt: skip
    return Schema("unseen", values, {}, together)


def train(forms: Mapping[str, Numbers], questions: int, held_out: int) -> Schema:
    """An update whose tensors may have these forms (see `compress.forms`)."""
    values = {
        "questions": _exactly(questions), "loss": Number(float, -MOST_TRAINED, MOST_TRAINED),
        "seconds": Number(float, 0.0, MOST_SECONDS), "held_out": _exactly(held_out), "right": _counted(held_out),
    }  # fmt: skip
    return Schema("train", values, {UPDATE + name: numbers for name, numbers in forms.items()})


def count(weights: int, held_out: int) -> Schema:
    values = {"held_out": _exactly(held_out), "trained": _counted(held_out)}
    return Schema("count", values, {"right": Numbers(torch.int64, (weights,), 0, held_out)})


def noised(forms: Mapping[str, tuple[torch.dtype, torch.Size]], most: float) -> Schema:
    """What a device gives out under epsilon: noised sums, none of whose coordinates is above `most`."""

    def together(reply: Payload) -> None:
        before, in_all = float(reply.values["before"]), float(reply.values["in_all"])
        _require(before <= in_all, f"{before:.6g} spent before, {in_all:.6g} in all")

    return Schema("noised", {"head": Text(HEAD), "before": SPENT, "in_all": SPENT}, _given(forms, most), together)


def clipped(forms: Mapping[str, tuple[torch.dtype, torch.Size]]) -> Schema:
    """A mean of clipped parts; how long it may be is for `within` to see to."""
    return Schema("clipped", {}, _given(forms, MOST_TRAINED))


def _given(forms: Mapping[str, tuple[torch.dtype, torch.Size]], most: float) -> dict[str, Numbers]:
    return {GIVEN + name: Numbers(dtype, tuple(shape), -most, most) for name, (dtype, shape) in forms.items()}
