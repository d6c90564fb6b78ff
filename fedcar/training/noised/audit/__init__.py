"""The audit of training under epsilon: whole runs of the product, and tests of what really leaves.

A `trial` is one run: its plan, its clients, its exchanges as they were watched between server and clients. What the
answers should be comes from `definition`, which shares no clipping, summing or noising with the product.

What other folders take:
    canaries.attack_by_likelihood_ratio: Canaries in one run of this plan, and what the likelihood ratio tells of
        them.
    canaries.planted_run: The whole plan over canaries, of which a fair coin each says whether it is there; no
        ledger of anybody.
    collection.audit_collection: Every check on the code that trains, with some real training questions; a correct
        run is flagged with p < 1e-6 in all.
"""
