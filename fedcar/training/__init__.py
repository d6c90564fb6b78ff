"""How a retriever is trained: candidates from cheap to dear, and what selection keeps.

What other folders take:
    adam.Adam: AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019, algorithm 2), equal to torch.optim.AdamW.
    adam.Group: Parameters that share a learning rate and a weight decay.
    checkpoint.Best: The best epoch so far (0: before training), its score on the selection questions and the
        trained tensors.
    checkpoint.Course: A gradient training on its way: what happened so far, and where it is kept, if anywhere, to
        go on from.
    checkpoint.difference: In words: another collection or encoder by its fingerprint, other settings by those that
        differ.
    clients.Answers: What clients gave, why others did not, the seconds it took, and the bytes that went down to all
        of them.
    clients.Clients: Those who take part in a procedure, by name.
    clients.InProcess: Clients of this process, asked one after the other in the order of their names; all of them
        answer.
    clients.MANY: From how many clients on no one of them is taken at its word.
    clients.MOST_COUNTED: How many times the median one of so many clients counts at most.
    clients.Request: What every client is asked for, which says by its type what each answers.
    folds.Folds: `of_document` (N,) is each document's fold, -1 for one without training questions; `share` how much
        folds count.
    folds.SAMPLE: how many training questions a choice by document folds reads at most.
    gradient.Trainer: The state of a gradient training: head, adapter and their optimiser; one method a rung of the
        ladder.
    gradient.prepared: A head of its own for this training, with the layers that the settings ask for.
    gradient.with_learned: What the head learns is in the unit of the score: it counts once.
    job.Job: What stands before anything is learned: search over the documents, and the questions made ready.
    job.NO_QUESTIONS: no questions: where nothing is to be learned from, or chosen by.
    job.Splits: Which of a collection's questions a job reads: to learn from, to choose by, and those that nothing
        answers.
    job.conclude: What was kept, with confidence and threshold from the selection questions, and the record of its
        training.
    job.prepare: Encode the questions of the splits, or find them in the cache, and weigh the evidence for each.
    job.prepare_privately: Questions made ready without the progress and the warnings that count them.
    mixture.LEAST_SPREAD: a feature that varies less says nothing and gets no weight.
    mixture.STRENGTH: the strength of the pull to the usual weights.
    mixture.STRENGTH_OF_ONE_QUESTION: that strength where there is one question.
    paper_recipe.no_guarantee: The statement of a training by this recipe: epsilon infinity, with the reason.
    refine.refined: Rows for the last `new` documents from their titles and sentences; no other row is touched.
    ridge.HeldOut: Features (m, c, F) and relevance (m, c) of sampled questions as if they had not been trained on.
    ridge.MOST_ROWS: for how many documents the closed form is solved: 4 GB while it is, 50 ms a question.
    ridge.PseudoSums: What the closed form and naive Bayes need of pseudo-queries; `counts` (documents,) are those
        of each document.
    ridge.RidgeQuestions: Training questions as the sums see them: features (n, D), grams (n, BUCKETS) and targets
        (n, documents), sparse.
    ridge.RidgeSums: What is learned from questions, and adds up over clients: statistics of the closed form, counts
        of words.
    ridge.STRENGTHS: the strengths of ridge's penalty that selection chooses among.
    ridge.Taught: The sums of all questions, and those of pseudo-queries beside them.
    ridge.right_without: Of how many questions a right document comes first when each is left out: the sum of those
        documents' targets.
    ridge.weightings: Mixtures to choose among, fitted by `fit` from the share of document folds, what to be pulled
        to, what is free.
    selection.ALLOWED: two scores that differ by less are equal.
    selection.Candidate: One trained retriever and what the selection questions say of it.
    selection.Fitted: A trained retriever and the mixtures to choose among.
    selection.FoldView: The collection by document folds, and the standard that they set; no folds where every
        document has questions.
    selection.NOTHING: the score of what was not judged.
    selection.Score: What candidates are compared by, in this order.
    selection.Standard: How much document folds count, by their share, and what weights of the evidence alone reach
        on them.
    selection.baseline_weights: Hybrid with .2 and .4, MIPS, BM25.
    selection.best_weights: The retriever with the best of its weightings; of equal ones the first.
    selection.candidate: What a method offers: its best weights, and their score on the selection questions.
    selection.select: The best on the selection questions and document folds, baselines included; of equal ones the
        cheapest.
    selection.success_and_mrr: Relevance and scores (n, c) -> success@1 and MRR@10.
    settings.Settings: What training does, all of it: equal settings on equal data give the same retriever.
    settings.TrainingSettings: What a training is asked for: the keywords of `train`, but for files and progress.
    settings.choose_settings: The settings of gradient steps that follow from what the user chose.
    settings.loaded: The encoder, read if it is not yet.
    settings.refuse_with_epsilon_only: Refuse an option that would be taken for privacy where there is none:
        training would be un-noised.
    settings.suited_to: For labels rows are trained; for texts (`deep`), where a document has few questions, a query
        map instead.
    settings.with_recipe: The settings with the paper's recipe where it is asked for; it has no epsilon.
    target.DELTA: the delta that is taken where none is given.
    target.Target: What the user asks for.
    target.check_budget: Refuse what nobody should promise, and what no plan can be made for (unless it is not
        `limited`, for a test).
    target.check_steps: Refuse numbers of steps and sampling rates of which no plan can be made in time.
    target.delta_warning: What to say of a delta above units^-1.1, the usual bound; empty below it.
    target.shown: In a few characters, also where it has thousands of digits.
    train.plan: What `train` would do with the same arguments, without doing it: counts, encoder, settings of
        gradient steps.
    train.train: Train a retriever on the collection's training questions; without any, the retriever is hybrid
        search.
    train.trained_candidates: What the method offers, from cheap to dear: the evidence with learned weights, ridge,
        head, adapter.
"""
