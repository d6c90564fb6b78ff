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
    model_files.fingerprint: sha256 over the weights, the configuration and the tokenizer files: equal encoders,
        equal fingerprints.
    model_files.fingerprint_with: The fingerprint with the values of an adapter, by their names: equal ones, equal
        states.
    model_files.first_line: The first line of an error's text, short enough for a message.
    model_files.parameter_count: How many numbers the weight files hold, from their headers.
    model_files.read_json: The JSON object in a file of an encoder's folder; FedcarError where there is none.
    reading.Reading: What one pass of n texts gives.
    reading.Runtime: Runs the frozen model on one batch, padded on the right.
    reading.States: One batch: tokens (n, t, d), pooled (n, d) and the mean states of the kept layers (n, k, d),
        float32.
    reading.TokenStates: A text's t tokens, special ones left out: ids (t,), where each begins and ends (t, 2),
        states (t, d).
    reading.batches_by_length: Row numbers in batches of similar length, longest first, each of at most `tokens`
        tokens with its padding.
    reading.padded: Token id lists as one batch, filled up on the right, and its mask (n, t).
    reference.reference_states: States (n,) of the untrained encoder on the first questions of the packaged
        collection.
    reference.reference_texts: The first questions of the packaged collection.
    stored.StoredEncoder: Texts -> the states of the encoder it was written from, without torch.
    stored_writing.check_encoder: Refuse a stored encoder that makes other tokens of the texts, or other states.
    stored_writing.check_states: Refuse hidden states (n, d), made by what was exported, that are not those that the
        encoder gives.
    stored_writing.write_encoder: Write model and tokenizer into the folder; gives the settings that
        `StoredEncoder.of` wants beside them.
"""
