"""The frozen language model: what makes a text a vector.

What other folders take:
    adapter.Adapter: y_t = A x_t for every token embedding x_t (arXiv 2509.16508, section III).
    adapter.SoftEmbedding: The model's own embedding module with the adapter behind it.
    adapter.parse_variant: `full`, `diagonal` or `lowrank:R` -> (name, rank); rank is 0 where it has no meaning.
    both.Both: The first encoder, whose records of questions hold those of the second too, in the field "beside".
    both.names_of: The encoders that a name joins by "+", one or two.
    both.price_of: what a second encoder costs, in milliseconds a question and megabytes of weights.
    cache.FeatureCache: Hidden states on disk, memory-mapped, keyed by encoder fingerprint, pooling, length limit
        and text.
    encoder.Encoder: Turns a text into one hidden state h of shape (d,), through a frozen model and an adapter if it
        has one.
    manner.FLAGS: how sentence-transformers before 6 names each pooling.
    manner.Manner: Prompts, what follows the pooling, and limits; the plain way where all are left as they are.
    manner.declared: The pooling and the manner that a folder names, as `SentenceTransformer(folder)` reads them;
        otherwise mean.
    manner.modules_of: The folders and kinds of the modules, in order; nothing where the folder names none.
    model.FrozenModel: A Hugging Face model in a folder; any number of encoders and threads share one.
    model.LOADING: the lock of whoever reads a model.
    model_files.DEFAULT_ENCODER: the name of the encoder that is taken where none is given.
    model_files.find: The folder that holds the model, and its revision where it comes from the hub.
    model_files.fingerprint: sha256 over the weights, the configuration and the tokenizer files: equal encoders,
        equal fingerprints.
    model_files.fingerprint_with: The fingerprint with the values of an adapter, by their names: equal ones, equal
        states.
    model_files.parameter_count: How many numbers the weight files hold, from their headers.
    model_files.read_json: The JSON object in a file of an encoder's folder; FedcarError where there is none.
    model_files.TWO_REFUSED: in words, where two encoders beside each other are not to be had.
    pooling.states_of: The last hidden states (n, t, d), pooled (n, d), and the mean states of the layers (n, k, d).
    reading.Reading: What one pass of n texts gives.
    reading.Runtime: Runs the frozen model on one batch, padded on the right.
    reading.States: One batch: tokens (n, t, d), pooled (n, d) and the mean states of the kept layers (n, k, d),
        float32.
    reading.TokenStates: A text's t tokens, special ones left out: ids (t,), where each begins and ends (t, 2),
        states (t, d).
    reading.batches_by_length: Row numbers in batches of similar length, longest first, each of at most `tokens`
        tokens with its padding.
    reading.padded: Token id lists as one batch, filled up on the right, and its mask (n, t).
    reference.reference_documents: The documents of the packaged collection, which are longer.
    reference.reference_pairs: The reference texts that a packaged document answers; all judgements count.
    reference.reference_states: States (n,) of the untrained encoder on the first questions of the packaged
        collection.
    reference.reference_texts: The first questions of the packaged collection.
    sixteen_bits.in_bfloat16: A copy of the model in bfloat16; tensors that are in bfloat16 already are the very
        same ones.
    stored.StoredEncoder: Texts -> the states of the encoder it was written from, without torch.
    stored_writing.check_encoder: Refuse a stored encoder that makes other tokens of the texts, or other states.
    stored_writing.check_states: Refuse hidden states (n, d), made by what was exported, that are not those that the
        encoder gives.
    stored_writing.write_encoder: Write model and tokenizer into the folder; gives the settings that
        `StoredEncoder.of` wants beside them.
"""
