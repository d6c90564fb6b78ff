"""What training does, all of it, and what follows from what the user chose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from fedcar.encoder.adapter import parse_variant
from fedcar.encoder.both import Both, names_of
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER, TWO_REFUSED, parameter_count
from fedcar.errors import FedcarError
from fedcar.privacy.statement import PAPER_RECIPE
from fedcar.retriever.retriever import Retriever
from fedcar.training.generated_questions import check_questions_from
from fedcar.training.target import DELTA, Target

MAP_EPOCHS = 6
SMALL_ENCODER = 5_000_000  # parameters
METHODS = ("auto", "ridge", "head", "adapter")
RECIPES = ("private", "paper")


@dataclass(frozen=True)
class TrainingSettings:
    """What a training is asked for: the keywords of `train`, but for files and progress. `Settings` follow from it.

    `method`: `ridge` (rows in closed form), `head` (rows by gradient steps on cached hidden states), `adapter` (adapter
    and head, through the frozen blocks), or `auto`: from cheap to dear, keeping what selection prefers. `encoder` is a
    model's name, folder or GGUF file, to be read with `pooling` and with `query_prompt` and `document_prompt` before
    every text (by default what the model declares), or one that is loaded. Two names joined by "+" are two
    encoders beside each other: the first is as if it were alone, and ridge or head over both is kept where it is
    surely better.
    `questions_from` is the address of an OpenAI-compatible server whose `questions_model` is sent the documents (no
    question) and asked what users would ask of them: pseudo-queries for ridge.

    `epsilon` trains under differential privacy (docs/privacy.md): class sums, head or adapter with noise, `epochs` full
    steps, no checkpoint. Dev is then not read, unless `public_dev` declares it public; `public` is a file of public
    questions and the ids of their documents, `public_because` the reason that the statement gives. Both train rows
    without noise first, from which noised steps go on, and a part of them chooses. So do `questions_from`, which come
    from the documents. `unit` "person=COLUMN" protects persons, whom this field of the questions' metadata names.
    `adaptive_clip` moves the clip norm by noised counts. The run is charged to the ledger of the folder that the
    collection was read from, or to `ledger`, a file or folder; `budget` limits the runs of a ledger together,
    `no_ledger` counts nowhere. `noise_seed` is for tests and makes epsilon infinite. `recipe` "paper" is that of arXiv
    2509.16508, without epsilon and without formal guarantee.
    """

    encoder: str | Path | Encoder = DEFAULT_ENCODER
    pooling: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    method: str = "auto"
    adapter: str = "full"
    head: str = "linear"
    pre_classifier: int = 0
    epochs: int | None = None
    seed: int = 0
    gradient_checkpointing: bool = False
    questions_from: str | None = None
    questions_model: str | None = None
    epsilon: float | None = None
    delta: float = DELTA
    unit: str = "example"
    public_dev: bool = False
    public: str | Path | None = None
    against_advice: bool = False
    adaptive_clip: bool = False
    noise_seed: int | None = None
    recipe: str = "private"
    ledger: str | Path | None = None
    no_ledger: bool = False
    budget: float | None = None
    public_because: str | None = None

    def steps(self, resume: bool = False) -> Settings:
        """What gradient steps do; FedcarError, before anything long begins, for what makes no sense together."""
        settings = choose_settings(self)
        method = self.method if self.epsilon is None else "auto"  # under epsilon every method begins with them
        check_both(self)
        check_questions_from(self.questions_from, self.questions_model, method)
        settings = with_recipe(settings, self.recipe, self.method, self.epsilon)
        refuse_with_epsilon_only(
            self.epsilon,
            public_dev=self.public_dev,
            public=self.public is not None,
            against_advice=self.against_advice,
            adaptive_clip=self.adaptive_clip,
            ledger=self.ledger is not None,
            no_ledger=self.no_ledger,
            budget=self.budget is not None,
            unit=self.unit != "example",
            public_because=self.public_because is not None,
        )
        if self.unit == "client":
            raise FedcarError("--unit client: here are questions of one place; give example or person=COLUMN")
        if (target := self.target) is not None:
            refuse_without_epsilon_only(self.head, self.pre_classifier, resume)
            target.check()
        return settings

    @property
    def target(self) -> Target | None:
        """What is to hold of every training question; None without epsilon."""
        if self.epsilon is None:
            return None
        choices = self.public_dev, self.noise_seed, self.against_advice, self.adaptive_clip
        file = self.public is not None
        return Target(
            self.epsilon, self.delta, self.unit, *choices, public_file=file, public_because=self.public_because
        )


class TrainingOptions(TypedDict, total=False):
    """The fields of `TrainingSettings`, for the type checker: what `train` takes by name."""

    encoder: str | Path | Encoder
    pooling: str | None
    query_prompt: str | None
    document_prompt: str | None
    method: str
    adapter: str
    head: str
    pre_classifier: int
    epochs: int | None
    seed: int
    gradient_checkpointing: bool
    questions_from: str | None
    questions_model: str | None
    epsilon: float | None
    delta: float
    unit: str
    public_dev: bool
    public: str | Path | None
    against_advice: bool
    adaptive_clip: bool
    noise_seed: int | None
    recipe: str
    ledger: str | Path | None
    no_ledger: bool
    budget: float | None
    public_because: str | None


def check_both(options: TrainingSettings) -> None:
    """Refuse what two encoders beside each other are not for, before one of them is read."""
    named = options.encoder
    two = named.beside is not None if isinstance(named, Encoder) else len(names_of(named)) > 1
    if two and options.epsilon is not None:
        raise FedcarError(f"--epsilon: {TWO_REFUSED}")
    if two and options.method == "adapter":
        raise FedcarError("--method adapter: trains through one encoder; name one, or give another method")


def both_loaded(options: TrainingSettings) -> Encoder:
    """The encoder that the options name, or two beside each other; pooling and prompts are then the first's."""
    named = options.encoder
    first, *further = (named,) if isinstance(named, Encoder) else names_of(named)
    if isinstance(first, Encoder) and first.beside is not None:
        return first
    encoder = loaded(first, options.pooling, options.query_prompt, options.document_prompt)
    if not further:
        return encoder
    beside = Encoder.load(further[0])
    if beside.state_fingerprint == encoder.state_fingerprint:
        raise FedcarError(f"--encoder {str(named)!r}: names one encoder twice; give it once, or another beside it")
    return Both(encoder, beside)


def loaded(
    encoder: str | Path | Encoder,
    pooling: str | None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
) -> Encoder:
    """The encoder, read if it is not yet; one alone."""
    if isinstance(encoder, Encoder):
        if encoder.beside is not None:
            raise FedcarError(f"{encoder.in_words}: {TWO_REFUSED}")
        return encoder
    return Encoder.load(encoder, pooling, query_prompt=query_prompt, document_prompt=document_prompt)


@dataclass(frozen=True)
class Settings:
    """What training does, all of it: equal settings on equal data give the same retriever.

    `inverse_penalty` is the C of logistic regression: the penalty on the rows is s^2 |r|^2 / (2 C n) with temperature s
    and n training questions. With `query_map` the map M is trained in place of rows, at the penalty `map_penalty`
    |M|^2 / n. `adapter_decay` pulls the adapter to the identity (decoupled weight decay). Rates fall along a cosine.
    `recipe` "paper" treats the gradients as `paper_recipe` says.
    """

    method: str = "head"
    epochs: int = 20
    seed: int = 0
    batch_size: int = 256
    head_rate: float = 0.01
    inverse_penalty: float = 30.0
    dropout: float = 0.2
    query_map: bool = False
    map_penalty: float = 0.1
    head: str = "linear"
    pre_classifier: int = 0
    adapter: str = "full"
    adapter_rate: float = 3e-3
    adapter_decay: float = 0.01
    gradient_checkpointing: bool = False
    recipe: str = "plain"


def choose_settings(options: TrainingSettings) -> Settings:
    """The settings of gradient steps that follow from what the user chose."""
    if options.method not in METHODS:
        raise FedcarError(f'--method "{options.method}": not known; give one of {", ".join(METHODS)}')
    if options.epochs is not None and options.epochs < 1:
        raise FedcarError(f"--epochs {options.epochs}: must be 1 or more")
    if options.seed < 0:
        raise FedcarError(f"--seed {options.seed}: must be 0 or more")
    parse_variant(options.adapter)
    settings = Settings(
        method="adapter" if options.method == "adapter" else "head",
        seed=options.seed,
        head=options.head,
        pre_classifier=options.pre_classifier,
        adapter=options.adapter,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    if options.method == "adapter":
        settings = of_adapter(settings)
    return settings if options.epochs is None else replace(settings, epochs=options.epochs)


def with_recipe(settings: Settings, recipe: str, method: str, epsilon: float | None) -> Settings:
    """The settings with the paper's recipe where it is asked for; it has no epsilon."""
    if recipe not in RECIPES:
        raise FedcarError(f'--recipe "{recipe}": not known; give one of {", ".join(RECIPES)}')
    if recipe == "private":
        return settings
    if epsilon is not None:
        raise FedcarError(f"--recipe paper --epsilon {epsilon:g}: {PAPER_RECIPE}; leave one of them out")
    if method not in ("head", "adapter"):
        raise FedcarError(f"--recipe paper: is for gradient steps; give --method head or adapter, not {method}")
    return replace(settings, recipe="paper")


def refuse_without_epsilon_only(head: str, pre_classifier: int, resume: bool) -> None:
    """Refuse what training under epsilon does not have."""
    if head != "linear" or pre_classifier:
        raise FedcarError("--epsilon: the head is then linear, without pre-classifier layer; leave these options out")
    if resume:
        raise FedcarError("--epsilon: no checkpoint is kept, as it takes seconds; start again without --resume")


def refuse_with_epsilon_only(epsilon: float | None, **options: bool) -> None:
    """Refuse an option that would be taken for privacy where there is none: training would be un-noised."""
    for option in (name.replace("_", "-") for name, given in options.items() if given and epsilon is None):
        raise FedcarError(f"--{option}: is for training under --epsilon; give that too, or leave it out")


def is_small(encoder: Encoder) -> bool:
    """Whether the encoder is small: then it is weak, an adapter helps it much and costs seconds, so `auto` tries it.

    stories260K gains .076 on BANKING77, all-MiniLM-L6-v2 (23 million parameters) .005 for minutes (docs/log.md).
    """
    return parameter_count(encoder.folder) <= SMALL_ENCODER


def of_adapter(settings: Settings) -> Settings:
    """What gradient training through the encoder takes: fewer epochs, smaller batches."""
    return replace(settings, method="adapter", epochs=6, batch_size=64)


def suited(settings: Settings, untrained: Retriever) -> Settings:
    """The settings that fit the encoder and the documents, see `suited_to`."""
    return suited_to(settings, untrained.encoder, untrained.evidence.deep)


def suited_to(settings: Settings, encoder: Encoder, deep: bool) -> Settings:
    """For labels rows are trained; for texts (`deep`), where a document has few questions, a query map instead.

    An adapter on an encoder that is not small moves slowly and is pulled harder to the identity, or it over-fits.
    """
    if settings.method == "adapter" and not is_small(encoder):
        settings = replace(settings, adapter_rate=1e-3, adapter_decay=0.1)
    if not deep:
        return settings
    if settings.method == "adapter":
        return replace(settings, query_map=True)
    return replace(settings, query_map=True, epochs=min(settings.epochs, MAP_EPOCHS), batch_size=128, head_rate=3e-3)
