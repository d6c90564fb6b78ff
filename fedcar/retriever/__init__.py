"""The retriever: evidence and learned rows behind one search.

What other folders take:
    calibration.Asked: Questions to learn confidence from: which candidates are relevant (n, c), and all without
        those.
    calibration.Calibration: Turns scores (n, c) into confidences, and says when a question is answered.
    calibration.LEAST_QUESTIONS: how many dev questions it takes for an answer threshold.
    calibration.Scored: What confidence is drawn from: scores (n, c), -inf for no hit, evidence (n, c, F), untrained
        states (n, d).
    evidence.Evidence: What the frozen encoder and the words say about a question and a document, before anything is
        learned.
    evidence.SHORT: up to how many words, in the median, documents are labels.
    evidence.at_once: So many questions, or fewer where there are so many documents that their scores would fill the
        memory.
    evidence.median_words: The median number of words of the documents that are not empty; 0 without any.
    evidence.reads_tokens: Whether the documents are texts to be read token by token: no labels, and the tokenizer
        knows the places.
    foreign.warn_of_other_languages: Warn (FedcarWarning) once of questions that are not in the documents' language,
        if the encoder reads one alone.
    hopeless.view_for: What cosines are taken of instead of the hidden states, for a hopeless encoder.
    lexical.LexicalIndex: BM25 scores of documents for a query: bm25s' defaults with English stop words, or over
        `words` of one's own.
    parts.KIND: the kind of folder that a retriever is saved as.
    parts.Parts: A saved retriever as values and plain arrays.
    parts.read_parts: Read a sealed folder, without torch.
    prepare.prepare: Encode the questions (or find them in the cache), choose their candidates and weigh the
        evidence.
    questions.Questions: n questions and, for c candidate documents each, what speaks for them before anything is
        learned.
    quick.quick_searcher: A saved retriever as what searches alike without torch; None where the cache or the
        packages lack what it takes.
    quick_writing.leave_quick_start: Write what `quick_searcher` needs into the user's cache, the first time that it
        is asked for this encoder.
    record.TrainingRecord: How a retriever came about, in plain values; None stands for what a kind of training does
        not tell.
    retriever.Retriever: Everything that answers a question, and how it came about.
    row_index.RowIndex: An inverted file over N rows in eight bits, beside the rows themselves.
    row_index.library: faiss, or an error that says how to install it.
    searcher.Answer: The hits of one question, best first; not `answered` where the retriever does not know.
    searcher.Passage: The part of a document that answers best: its text, and where that begins and ends in the
        document's text.
    searcher.READ_AT_ONCE: how many questions are read together.
    searcher.Searcher: Everything that answers a question; searching changes nothing of it, so threads may share
        one.
    weights.APART: where the weights of documents without a trained row begin, where others have one.
    weights.LEARNED: how many features of the mixture are evidence; those of what was learned follow.
    weights.WEIGHT_NAMES: every weight of the mixture, in order.
    weights.mixed_features: Evidence (n, c, 8), what was learned (n, c, 2), which candidates stand apart (n, c) ->
        (n, c, F).
    weights.weights_of: Weights of the mixture by those of the evidence, the same for documents that stand apart.
"""
