"""The order of a training, written once: prepare, learn, compare and select, calibrate, record.

Training in one place, simulated clients and clients behind a network have their own ways to learn, with noise and
without; what comes before and after is this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedcar.collection.collection import Collection, Judged
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.retriever.calibration import Calibration
from fedcar.retriever.prepare import prepare as read
from fedcar.retriever.questions import Questions
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.retriever import Retriever

NOBODY = Judged((), ())


@dataclass(frozen=True)
class Job:
    """What is read of a collection before anything is learned.

    `training` is empty where clients keep their questions; `selection` is empty where nothing may be chosen by: there
    are no such questions, or they are private.
    """

    collection: Collection
    untrained: Retriever
    features: FeatureCache
    report: Silent
    training: Questions
    selection: Questions

    @classmethod
    def prepare(
        cls,
        collection: Collection,
        untrained: Retriever,
        features: FeatureCache,
        report: Silent,
        *,
        training: Judged = NOBODY,
        selection: Judged = NOBODY,
    ) -> Job:
        """Read the questions, those to train on first."""
        questions = [
            read(untrained, judged, features, report, f"{what} questions")
            for what, judged in (("training", training), ("selection", selection))
        ]
        return cls(collection, untrained, features, report, *questions)

    def conclude(self, retriever: Retriever, record: TrainingRecord) -> Retriever:
        """The retriever that was kept, with confidence and answer threshold, and the record of how it came about.

        Without selection questions nothing is calibrated, and the dev questions that nothing answers are not read.
        """
        of_documents = {"name": self.collection.name, "fingerprint": self.collection.fingerprint}
        record = replace(record, collection=record.collection or of_documents, selection_questions=len(self.selection))
        return replace(retriever, calibration=self._calibration(retriever), training=record)

    def _calibration(self, retriever: Retriever) -> Calibration:
        """From the selection questions and those of dev that nothing answers."""
        if not len(self.selection):
            return Calibration()
        nobody_answers = self.collection.unanswerable("dev")
        unanswerable = Judged(nobody_answers, ({},) * len(nobody_answers))
        unanswered = read(self.untrained, unanswerable, self.features, self.report, "unanswerable questions")
        others = retriever.scores_of(unanswered) if len(unanswered) else None
        return Calibration.fit(retriever.scores_of(self.selection), self.selection.relevance > 0, others)
