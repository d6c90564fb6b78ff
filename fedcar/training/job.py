"""The order of a job, written once: prepare, learn, compare, select, calibrate, record.

`prepare` makes the questions ready; what is learned from them, and how candidates are compared, is the procedure's own
(see `train`, and `fedcar.federation`); `conclude` makes of what was kept a retriever that tells how it came about.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from fedcar.collection.collection import Collection, Judged
from fedcar.collection.splits import split_for_selection, subset
from fedcar.common.measure import Clock, peak_memory_mb
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.errors import FedcarError
from fedcar.privacy.statement import Statement, plain_words, to_json
from fedcar.retriever.calibration import Calibration
from fedcar.retriever.foreign import warn_of_other_languages
from fedcar.retriever.prepare import prepare as made_ready
from fedcar.retriever.questions import Questions
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.retriever import Retriever
from fedcar.training.confidence import calibrated
from fedcar.training.selection import Candidate

NO_QUESTIONS = Judged((), ())
CHOICE_SHARE, LEAST_CHOICE = 0.2, 50  # of public questions: those that choose and train no row; half where they are few


@dataclass(frozen=True)
class Splits:
    """Which of a collection's questions a job reads: to learn from, to choose by, and those that nothing answers.

    `training` is None where they stay on clients. With `private` ones nothing is said, and nothing kept, of them;
    `public` are then those that train rows un-noised.
    """

    training: Judged | None
    selection: Judged
    unanswerable: Judged
    private: bool = False
    public: Judged = NO_QUESTIONS

    @classmethod
    def in_one_place(cls, collection: Collection, seed: int) -> Splits:
        """Train and dev; without dev a tenth of train chooses (see `split_for_selection`)."""
        return cls(*split_for_selection(collection, seed), unanswerable(collection))

    @classmethod
    def on_clients(cls, collection: Collection) -> Splits:
        """Dev alone: who trains has the questions."""
        return cls(None, collection.judged("dev"), unanswerable(collection))

    @classmethod
    def under_epsilon(cls, collection: Collection, public: bool, training: Judged | None = None) -> Splits:
        """All of `training`; of dev nothing, unless it was declared public: then most trains rows, the rest chooses."""
        if not public:
            return cls(training, NO_QUESTIONS, NO_QUESTIONS, private=True)
        dev = collection.judged("dev")
        if not len(dev):
            raise FedcarError(
                "--public-dev: there is no dev split to choose by; bring qrels/dev.tsv, or a --public FILE with "
                "questions that a document answers"
            )
        taught, choice = for_rows_and_for_choice(dev)
        return cls(training, choice, unanswerable(collection), private=True, public=taught)


def for_rows_and_for_choice(public: Judged) -> tuple[Judged, Judged]:
    """Public questions parted by a hash of their ids: those that train rows, and those that choose."""
    count = max(round(CHOICE_SHARE * len(public)), min((len(public) + 1) // 2, LEAST_CHOICE))
    digests = [hashlib.sha256(query.id.encode("utf-8", "surrogatepass")).digest() for query in public.queries]
    chosen = set(sorted(range(len(public)), key=digests.__getitem__)[:count])
    choose = [row in chosen for row in range(len(public))]
    return subset(public, [not one for one in choose]), subset(public, choose)


def unanswerable(collection: Collection) -> Judged:
    """The questions of dev that nothing answers."""
    queries = collection.unanswerable("dev")
    return Judged(queries, ({},) * len(queries))


@dataclass(frozen=True)
class Job:
    """What stands before anything is learned: search over the documents, and the questions made ready.

    `training` is empty where the questions stay on clients, `selection` where there is nothing to choose by. `public`
    are those that train rows without noise under epsilon.
    """

    collection: Collection
    untrained: Retriever
    features: FeatureCache
    report: Silent
    training: Questions
    selection: Questions
    unanswered: Questions
    private: bool = False
    public: Questions | None = None


def prepare(
    collection: Collection, untrained: Retriever, features: FeatureCache, report: Silent, splits: Splits
) -> Job:
    """Encode the questions of the splits, or find them in the cache, and weigh the evidence for each.

    Beside private questions those that choose were declared public, and have nothing to do with where those are kept.
    """
    place = features.public if splits.private else features

    def ready(judged: Judged, what: str) -> Questions:
        return made_ready(untrained, judged, place, report if len(judged) else Silent(), what)

    if splits.private or splits.training is None:
        training = prepare_privately(untrained, splits.training or NO_QUESTIONS, features)
    else:
        training = ready(splits.training, "training questions")
        warn_of_other_languages(untrained.encoder, training.texts, untrained.evidence.wording.language)
    selection = ready(splits.selection, "public dev questions" if splits.private else "selection questions")
    unanswered = ready(splits.unanswerable, "unanswerable questions")
    public = ready(splits.public, "public questions") if len(splits.public) else None
    return Job(collection, untrained, features, report, training, selection, unanswered, splits.private, public)


def prepare_privately(untrained: Retriever, judged: Judged, features: FeatureCache) -> Questions:
    """Questions made ready without the progress and the warnings that count them."""
    with untrained.encoder.model.without_remarks():
        return made_ready(untrained, judged, features, Silent(), "training questions")


def conclude(
    job: Job,
    chosen: Candidate,
    record: TrainingRecord,
    claim: Statement | None = None,
    clock: Clock | None = None,
    *,
    in_one_place: bool = True,
) -> Retriever:
    """What was kept, with confidence and threshold from the selection questions, and the record of its training.

    The claim, where there is one, goes with it and is said. With `clock` the record has the seconds so far. Where the
    training questions are not in one place, nothing is learned of confidence that only who has all of them could know.
    """
    retriever = chosen.retriever
    if not job.private:
        retriever = calibrated(retriever, job.selection, job.unanswered, job.training if in_one_place else None)
    elif len(job.selection) >= LEAST_CHOICE:
        retriever = calibrated(retriever, job.selection, job.unanswered)
    else:  # no question may be asked about confidence
        retriever = replace(retriever, calibration=Calibration())
    if clock is not None:
        clock.lap("train")
        record = replace(record, seconds=clock.seconds, peak_memory_mb=peak_memory_mb())
    if claim is not None:
        job.report.say(plain_words(claim).splitlines()[0])
    record = replace(
        record,
        method=chosen.name,
        collection=identity(job),
        selection_questions=len(job.selection),
        privacy=to_json(claim) if claim is not None else None,
    )
    return replace(retriever, training=record)


def identity(job: Job) -> dict[str, str]:
    """Which collection it was; of one whose questions are private no hash of them."""
    if not job.private:
        return {"name": job.collection.name, "fingerprint": job.collection.fingerprint}
    documents_alone = replace(job.collection, queries={}, judgements={})
    return {"name": job.collection.name, "documents_fingerprint": documents_alone.fingerprint}
