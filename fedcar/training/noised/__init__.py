"""Training under differential privacy: the plan, the sums, the clients and their server.

What other folders take:
    attack.attack_collection: Attack an adapter update, a rows update and class sums of real training questions,
        without noise and with it.
    audit.audit_collection: Every check on the code that trains, with some real training questions; each flags a
        correct run at p < 1e-6.
    central.chosen_by: The questions that choices are made on; None where none were declared public.
    central.concluded: The retriever of a run under epsilon, with its statement and its record; `federation` says
        who took part.
    central.train_under_epsilon: A retriever that satisfies (epsilon, delta)-differential privacy for every training
        question.
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
    plan.HELD_OUT: the name of the release that counts held-out questions.
    plan.LARGEST_CLIP_NORM: how far a clip norm that adapts may rise.
    plan.LEAST_CLIP_NORM: how far a clip norm that adapts may fall.
    plan.PrivatePlan: All releases of a run, in order: `count` once (None where the number of units is public),
        `sums` once, `step`.
    plan.advise: The plan for clients with so many questions each, and the share of un-noised training's gain to
        expect.
    plan.make_plan: Share the budget out and calibrate the noise; `auto` is `head`: a choice fixed in advance, which
        costs nothing.
    record.ExchangeRecord: What an exchange came to, in plain values.
    server.PrivateTraining: The server: adds up what the devices give out, and turns it into rows and adapter.
    server.held_out_counts: Held-out questions of a client, how many search gets right, and how many the state:
        (3,).
    settings.PrivateSettings: All that a plan follows from: devices and server make the same of it, so nobody is
        told how much noise to add.
    sums.BELOW: the name of the noised count of gradients below the clip norm.
    sums.COUNT: the name of the noised count of questions.
    sums.ClippedSums: A device's questions as the sums need them: x (n, d), candidates (n, c), offset (n, c),
        relevance (n, c).
    sums.ROWS: the name of the noised sum of the rows' gradients.
    sums.Tensors: tensors by name.
"""
