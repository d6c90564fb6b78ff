"""How good a retriever is: baselines, metrics, the table side by side.

What other folders take:
    baselines.CHUNK: how many questions are scored at a time.
    baselines.HYBRID_WEIGHTS: the weights of BM25 that hybrid search chooses among.
    evaluate.evaluate: Measure the four systems on the split's judged queries; docs/cli.md has the shape.
    metrics.DEPTH: how many documents of a ranking the measures read.
    metrics.mean: The means over the chosen queries, with their number; None where there is none.
    metrics.per_query: Ranked document ids and judgements of n queries -> each measure's n values.
"""
