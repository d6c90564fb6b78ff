"""What every federated job does around its rounds, simulated or real.

What other folders take:
    job.Watch: what is told of each round as it ends.
    job.baselines: MIPS and hybrid on the selection questions, to stand beside each round.
    job.check_method: Refuse, before long work, a method or settings that make no sense.
    job.fitted: Settings of central training that fit the encoder and the documents, see `suited_to`.
    job.matched: Settings of training and of the rounds with the same number of epochs in all.
    job.of_a_client: Settings of local training: smaller batches, the head's rate larger by the root of how much
        smaller they are.
    job.ridge_candidates: The one round of `ridge`, without and with pseudo-queries, and its record; nothing is kept
        to go on from.
    job.train_rounds: Rounds of gradient training on top of the evidence: the best round's retriever, the history,
        the best score.
    job.with_federated_mixture: The untrained retriever with weights of the evidence learned over the clients, and
        the rounds that took.
    noised.PrivateRun: The run folder: RUN/history.jsonl, RUN/private.json, and RUN/clients where the ledgers are
        not elsewhere.
    noised.belongs_to: What a run belongs to, without a hash of any private question.
    noised.check_participation: Refuse --participation under unit "example", where every client takes part in every
        round.
    noised.device: A client with its ledger; refuses one that the server knows to be longer.
    noised.noting: After every exchange: the ledgers' heads and the record on disk, then whoever watches.
    noised.over_a_network: The same behind a network: each device keeps its own ledger, for unit "client" the
        server.
    noised.shown: A record with the columns of the live table; what would need an un-noised look is empty.
"""
