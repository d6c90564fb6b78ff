"""`fedcar bench`: speed and quality beside what users run today, in the same run.

What other folders take:
    encode.Encoding: What is encoded and timed: so many questions and paragraphs, by these runtimes, in so many
        runs.
    encode.bench_encode: Time fedcar's runtimes and SentenceTransformer.encode (its defaults) in turns; medians over
        the runs.
    jobs.Comparison: What is compared with fedcar, and how.
    jobs.TRAIN_PEERS: whom `fedcar bench train` can run against.
    jobs.bench_train: Train fedcar and the peers on the collection and measure all of them on its test split; the
        contract's shape.
    search.bench_search: Find the ten best of so many made-up rows, or of the hidden states in a cache; the
        contract's shape.
    step.Steps: What is timed: steps on so many questions, batches and paragraphs; with `memory` what an update
        holds too.
    step.bench_step: Time `head`, `ridge` and the adapter's step in turns with what they consist of; medians over
        the runs.
"""
