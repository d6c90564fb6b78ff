"""The classifier with one row a document, and what is learned in closed form.

What other folders take:
    closed_form.LeftOut: Training questions as `projected` phi L^-T (n, D), what ridge predicts for them and their
        targets (n, documents).
    closed_form.Ridge: W (D, documents) = (gram + strength I)^-1 cross, with the Cholesky factor L (D, D) of the
        matrix inverted.
    closed_form.STRENGTH: the strength of ridge's penalty where none is chosen.
    closed_form.Statistics: All that ridge needs of n questions: gram = sum phi phi^T (D, D), cross = sum phi y^T
        (D, documents), counts.
    closed_form.solve: The ridge solution; `strength` is the penalty on the squared weights.
    feature_map.Beside: What a map takes of a second encoder.
    feature_map.FREQUENCIES: random frequencies of each of the two sets.
    feature_map.FeatureMap: phi(question) of shape (D,): nothing in it is fitted to a question, so sums over clients
        are exact.
    feature_map.LAYER_WEIGHT: how much the inner layers count beside the pooled state.
    frozen.FrozenHead: `Head` after training: `rows` (a, d) of the documents `active` (a,), and what the question
        goes through.
    head.Head: Classifier-as-Retriever (arXiv 2509.16508, section III).
    head.START_SCALE: the temperature that training starts with.
    losses.Relevant: The relevant candidates of questions: the question, the candidate and its share of the
        question's relevance (r,).
    losses.candidate_losses: Decoupled softmax cross-entropy of each question over its candidates: (b, c) and (b, c)
        -> (b,).
    losses.candidate_slopes: The sum of `candidate_losses` times importance (b,); its gradients take the place of
        the scores (b, c).
    naive_bayes.BUCKETS: how many columns words and word pairs are hashed to.
    naive_bayes.NaiveBayes: `counts` (documents, BUCKETS): the grams of each document's training questions.
    naive_bayes.gram_counts: log2(1 + count) of each text's words and word pairs, hashed: (n, BUCKETS) sparse,
        float32.
    ridge_rows.RidgeRows: `weights` (D, a) for the a documents with training questions, their rows `documents` (a,),
        and their words.
    rows.KINDS: the kinds of numbers in which rows can be kept.
    rows.Rows: N vectors (N, d) as float32, float16 or int8 with a scale (N,) for each; an index gives float32 back.
    rows.products: Queries (n, d) and vectors (N, d), stored or plain -> inner products (n, N).
    view.View: The mean states of all kept layers, each whitened, added up: nothing in it is fitted to a collection.
"""
