"""What training does, all of it, and what follows from what the user chose."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedcar.encoder.adapter import parse_variant
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import parameter_count
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


@dataclass(frozen=True)
class Choices:
    """What a user asks of training; the defaults are those of `fedcar train`, whose options have the same names.

    `method`: `ridge` (rows in closed form), `head` (rows by gradient steps on cached hidden states), `adapter` (adapter
    and head, through the frozen blocks), or `auto`: from cheap to dear, keeping what selection prefers. `pooling` is
    the model's own by default, `epochs` that of the method. `questions_from` is the address of an OpenAI-compatible
    server whose `questions_model` is sent the documents (no question) and asked what users would ask of them.

    `epsilon` trains under differential privacy (docs/privacy.md): class sums, head or adapter with noise, `epochs` full
    steps. Dev is then not read, unless `public_dev` declares it public. `adaptive_clip` moves the clip norm by noised
    counts. `noise_seed` is for tests and makes epsilon infinite. `recipe` "paper" is that of arXiv 2509.16508, without
    epsilon and without formal guarantee.
    """

    pooling: str | None = None
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
    public_dev: bool = False
    against_advice: bool = False
    adaptive_clip: bool = False
    noise_seed: int | None = None
    recipe: str = "private"

    def settings(self) -> Settings:
        """The settings of gradient steps that follow; FedcarError for what makes no sense."""
        if self.method not in METHODS:
            raise FedcarError(f'--method "{self.method}": not known; give one of {", ".join(METHODS)}')
        if self.epochs is not None and self.epochs < 1:
            raise FedcarError(f"--epochs {self.epochs}: must be 1 or more")
        if self.seed < 0:
            raise FedcarError(f"--seed {self.seed}: must be 0 or more")
        parse_variant(self.adapter)
        settings = Settings(
            method="adapter" if self.method == "adapter" else "head",
            seed=self.seed,
            head=self.head,
            pre_classifier=self.pre_classifier,
            adapter=self.adapter,
            gradient_checkpointing=self.gradient_checkpointing,
        )
        if self.method == "adapter":
            settings = of_adapter(settings)
        settings = settings if self.epochs is None else replace(settings, epochs=self.epochs)
        check_questions_from(self.questions_from, self.questions_model, self.method)
        return with_recipe(settings, self.recipe, self.method, self.epsilon)

    def target(self, resume: bool = False) -> Target | None:
        """The promise of privacy; None without epsilon. FedcarError for options that the one or the other has not."""
        if self.epsilon is None:
            flags = ("public_dev", "against_advice", "adaptive_clip")
            refuse_with_epsilon_only(None, **{flag: getattr(self, flag) for flag in flags})
            return None
        if self.head != "linear" or self.pre_classifier:
            message = "the head is then linear, without pre-classifier layer; leave these options out"
            raise FedcarError(f"--epsilon: {message}")
        if self.questions_from is not None:
            raise FedcarError("--epsilon: class sums know no pseudo-queries; leave --questions-from out")
        if resume:
            raise FedcarError("--epsilon: no checkpoint is kept, as it takes seconds; start again without --resume")
        noise = (self.public_dev, self.noise_seed, self.against_advice, self.adaptive_clip)
        return Target(self.epsilon, self.delta, "example", *noise)


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
