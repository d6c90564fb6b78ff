"""What every federated job does around its rounds, simulated or real.

What other folders take:
    job.FederatedJob: A job whose training questions are on clients: in this process (`shares`), or behind a
        `network`.
    job.baselines: MIPS and hybrid on the selection questions, to stand beside each round.
    job.bytes_per_round: What a round takes over the network, down and up, as a mean.
    job.check_method: Refuse, before long work, a method or settings that make no sense.
    job.fitted: Settings of central training that fit the encoder and the documents, see `suited_to`.
    job.learn: All rounds of the method on top of the mixture; `shown` stands beside each record that is watched.
    job.matched: Settings of training and of the rounds with the same number of epochs in all.
    job.of_a_client: Settings of local training: smaller batches, the head's rate larger by the root of how much
        smaller they are.
    job.selected: What is kept of search, evidence and candidates.
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
    noised.settings_of: What the plan follows from: a round is a step, and clients are drawn for it where they are
        what is hidden.
    noised.stated: The statement of a run, beside its history as it is in the retriever.
"""
