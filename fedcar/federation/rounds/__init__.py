"""A round: who is asked, what comes back, what the server makes of it.

What other folders take:
    aggregate.FIXED: the tensors that travel with the state and are never trained.
    aggregate.ROW_TENSORS: the tensors that have a row a document, moments included.
    aggregate.counted: Each n_i as it counts, at most so many times the lower median.
    client.Client: One client: its questions, its trainer, and the state it keeps from round to round.
    client.Train: Local training from the server's state; `attempt` counts how often this round was begun.
    client.first_moments: The state of an Adam that has made no step yet, by name.
    clients.RoundClients: Clients who `Train`.
    clock.VirtualClock: What a device and its connection are like; the default is this machine without a network.
    clock.parse_clock: `bandwidth=20mbps,latency=50ms,...` as a clock; refuses unknown keys, units and values.
    compress.ROWS: how the tensor that names rows is called.
    compress.SCALE: how the tensor with the scales of rows is called.
    compress.VALUES: how the tensor with the rows' values is called.
    compress.decode: What `encode` was given, up to what its kind loses; ValueError, with the reason, for what is
        malformed.
    compress.dtype_of: The type in which the values of this tensor travel.
    compress.encode: Tensors as they travel to someone who has `reference`, and the error to carry over to the next
        time.
    compress.form: A tensor's type and shape in words, for an error.
    compress.wire_bytes: The bytes that travel: a safetensors payload with its header.
    in_process.LocalNetwork: Clients in this process, who `Train` beside a virtual clock: some drop out, some come
        after the deadline.
    record.Record: of a round, or of an exchange under epsilon.
    record.RoundRecord: What a round came to, in plain values.
    record.Watch: what hears of each round as it ends, and what stands beside it.
    record.shown: A record with all columns of tables and `--json`; what would need an un-noised look is empty.
    robust.HARM: By how much a device must harm the chance of the right answer to be refused.
    robust.Harm: By how much a judge's questions are better off without something, on average and in standard
        errors.
    robust.MOST_JUDGED: Among how many updates, at most, each is judged.
    robust.judging: Those of the questions that judge, the same ones in every round.
    robust.share_right: The share of right answers by each device's word, a median from five devices on.
    round.choose_cohort: The clients asked, seeded by seed, round and attempt; failed ones wait their turn unless
        too few are left.
    round.federated_round: One round of federated averaging (McMahan et al. 2017): the state after it, and its
        record for the history.
    round.note_failures: A client that failed is asked again after 1, 2, 4, then every 8 rounds; an accepted update
        clears its record.
    round.quorum: How many answers a round needs.
    run_folder.RunFolder: RUN/history.jsonl, one record a round; RUN/checkpoint, sealed and replaced in one step
        after every round.
    run_folder.refuse_another: Raise FedcarError where a run belongs to another collection, encoder or settings;
        names both.
    server_selection.ServerSelection: Scores the state after a round on the selection questions and keeps the best;
        what is not shared is untrained.
    settings.RoundSettings: Equal settings on equal data give the same retriever; every client gets them with the
        state.
    update.Enrolled: What the server knows of a client from the start: n_i, and n_id (documents,), its questions of
        each document.
    update.ServerState: Everything the server carries from round to round; with the clients' kept state, all that a
        checkpoint holds.
    update.Update: What a client sends: `tensors` in the form of the wire (see `compress`), and plain numbers.
"""
