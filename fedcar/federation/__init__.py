"""Federation: many clients train one retriever, and no question leaves its client.

Six floors of its own: docs/architecture.md. `rounds.round.federated_round` is the algorithm.

What other folders take:
    ledgers.Ledgers: Where a device's ledgers lie: one a run with that run's budget, or one over all runs (`kept`).
    ledgers.file_name: A client's name as that of a folder.
    ledgers.opened_ledger: A client's ledger, made with the run's budget where there is none and the server knows of
        none.
    ledgers.remembered: The file of the ledger over runs that a device had last, by its witness; FedcarError where
        that is gone.
"""
