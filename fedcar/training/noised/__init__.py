"""Training under differential privacy: the plan, the sums, the clients and their server.

What other folders take:
    attack.attack_collection: Attack an adapter update, a rows update and class sums of real training questions,
        without noise and with it.
    central.concluded: The retriever of a run under epsilon, with its statement and its record; `federation` says
        who took part.
    central.train_under_epsilon: A retriever that satisfies (epsilon, delta)-differential privacy for every training
        question.
    clients.Behind: Clients that are asked through something else; all but how they are asked is theirs.
    clients.Cohort: Clients whose sums a trusted server adds up and noises once: unit "client".
    clients.HeldOut: counts held-out questions: a state -> questions, right by search, right by the state (3,).
    clients.InTurn: Devices of this process (or a cohort), asked one after the other.
    clients.NoisedClient: One device: its questions, its noise, its ledger; nothing of the questions leaves but
        through `release`.
    clients.NoisedClients: Clients under epsilon: devices of this process (`InTurn`), or devices behind a network.
    clients.NoisedRequest: What every device is asked to give out in one exchange of a run: a count, class sums, or
        gradients at `state`.
    clients.mean: The mean of one client's clipped parts: its norm is at most the release's sensitivity.
    clients.poisson: The places (m,) of those whose own coin says yes, by the operating system's randomness.
    clients.within: The tensors in float64, together no longer than the bound: cut to it; zeros for what is not
        finite.
    plan.HELD_OUT: the name of the release that counts held-out questions.
    plan.LARGEST_CLIP_NORM: how far a clip norm that adapts may rise.
    plan.LEAST_CLIP_NORM: how far a clip norm that adapts may fall.
    plan.PrivatePlan: All releases of a run, in order: `count` once (None where the number of units is public),
        `sums` once, `step`.
    plan.make_plan: Share the budget out and calibrate the noise; `auto` is `head`: a choice fixed in advance, which
        costs nothing.
    public.PublicQuestions: Questions that no promise is made of: `training` for the rows, each of a weight (n,),
        `selection` to choose by.
    public.with_public_rows: The settings with what the plan has to know of public questions: whether they are
        enough to begin with.
    record.ExchangeRecord: What an exchange came to, in plain values.
    server.Outcome: What training under epsilon came to: the retriever kept, what it is called, the record of each
        exchange.
    server.PrivateTraining: The server: adds up what the devices give out, and turns it into rows and adapter.
    server.held_out_counts: Held-out questions of a client, how many search gets right, and how many the state:
        (3,).
    server.retriever_of: The retriever of a state: every row is active, whether or not its document has questions.
    settings.PrivateSettings: All that a plan follows from: devices and server make the same of it, so nobody is
        told how much noise to add.
    sums.ADAPTER_SCALE: of the adapter's difference to the identity, as it is trained.
    sums.BELOW: the name of the noised count of gradients below the clip norm.
    sums.BELOW_SHARE: of a question's squared length, for the bit of an adaptive clip norm.
    sums.COUNT: the name of the noised count of questions.
    sums.ClippedSums: A device's questions as the sums need them: x (n, d), candidates (n, c), offset (n, c),
        relevance (n, c).
    sums.EVIDENCE_SHARE: of the evidence's default weights, beside rows.
    sums.ROWS: the name of the noised sum of the rows' gradients.
    sums.SUMS: the name of the class sums.
    sums.Tensors: tensors by name.
    tally.Counting: Where a run under epsilon is counted: the ledger of the collection's folder, or `ledger`, a file
        or folder.
    tally.LEDGER: the name of a ledger's file.
    tally.Spent: The epsilon that a collection's ledger counts: before a run, and with it, at the run's delta.
    tally.Tallied: Clients whose collection's ledger counts each exchange before they are asked.
    tally.Tally: One run in a collection's ledger.
    tally.account: What a ledger allows and what was spent, run by run, in plain values; whatever the clock says.
    tally.found_of: The file of a collection's ledger, where there is one.
    tally.ledger_file: The ledger that a user names by its file or its folder.
    tally.opened: A ledger over runs, made where there is none: with this budget, or to be counted in without any
        limit.
    tally.registered: The file of the collection's ledger: the one named first, or one in the user's state folder.
    tally.tally_of: This run in the ledger of its collection; None where it is counted nowhere.
    tally.witnessed: A ledger whose witnesses lie with the user's data and in these folders (see `Ledger`).
    units.advise: The plan for clients with so many questions each, and the share of un-noised training's gain to
        expect.
    whitening.whitening: W (d, d), symmetric: x is measured as W x.
"""
