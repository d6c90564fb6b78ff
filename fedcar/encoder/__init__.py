"""The frozen language model: what makes a text a vector.

What other folders take:
    adapter.Adapter: y_t = A x_t for every token embedding x_t (arXiv 2509.16508, section III).
    adapter.SoftEmbedding: The model's own embedding module with the adapter behind it.
    adapter.parse_variant: `full`, `diagonal` or `lowrank:R` -> (name, rank); rank is 0 where it has no meaning.
    cache.FeatureCache: Hidden states on disk, memory-mapped, keyed by encoder fingerprint, pooling, length limit
        and text.
    encoder.Encoder: Turns a text into one hidden state h of shape (d,), through a frozen model and an adapter if it
        has one.
    model.FrozenModel: A Hugging Face model in a folder; any number of encoders and threads share one.
    model.pool: Token states (n, t, d) and mask (n, t) -> (n, d): the mean, the last or the first token that the
        mask keeps.
    model.states_of: The last hidden states (n, t, d), pooled (n, d), and the mean states of the layers (n, k, d).
    model_files.DEFAULT_ENCODER: the name of the encoder that is taken where none is given.
    model_files.default_pooling: What the model was trained with (1_Pooling/config.json); otherwise mean.
    model_files.find: The folder that holds the model, and its revision where it comes from the hub.
    model_files.first_line: The first line of an error's text, short enough for a message.
    model_files.parameter_count: How many numbers the weight files hold, from their headers.
    model_files.read_json: The JSON object in a file of an encoder's folder; FedcarError where there is none.
    reading.Reading: What one pass of n texts gives.
    reading.Runtime: Runs the frozen model on one batch, padded on the right.
    reading.States: One batch: tokens (n, t, d), pooled (n, d) and the mean states of the kept layers (n, k, d),
        float32.
    reading.TOKENS_PER_BATCH: how many tokens, padding included, a batch holds.
    reading.TokenStates: A text's t tokens, special ones left out: ids (t,), where each begins and ends (t, 2),
        states (t, d).
    reading.Tokens: A text's t tokens: ids, where each begins and ends in the text, and whether it is a special one.
    reading.batches_by_length: Row numbers in batches of similar length, longest first, each of at most `tokens`
        tokens with its padding.
    reading.padded: Token id lists as one batch, filled up on the right, and its mask (n, t).
    reading.read: Tokens of n texts -> all that is asked of their states, each text through the model once.
    reading.state_type: What is kept of a text: h (d,) in float32 and the mean states of the kept layers (k, d) in
        float16.
    reference.reference_states: States (n,) of the untrained encoder on the first questions of the packaged
        collection.
"""
