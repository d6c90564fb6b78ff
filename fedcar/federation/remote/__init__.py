"""Clients behind a network, as the server sees them.

What other folders take:
    held_out.candidate_by: As `train.candidate`: the best of the mixtures, document folds counting by their share.
    held_out.check_held_out: FedcarError where nobody has a question to choose by.
    held_out.select_by: As `train.select`: the best, baselines included; of equal ones the cheapest.
    held_out.shares_before: The share of held-out questions that search gets right: by each baseline, and by the
        learned mixture.
    held_out.shown: MIPS and hybrid, to stand beside each round.
    mixture.RemoteMixture: Devices that know their part of the mixture; each is asked twice before it counts as
        failed.
    network.RemoteNetwork: Devices behind the interface of a network: state and cohort in, answers out.
    noised.Exchanges: RUN/exchanges: of every exchange that is done its record and its sums, so that no device is
        asked for it again.
    noised.RemoteCohort: Clients behind a network whose sums a trusted server adds up and noises once (unit
        "client").
    noised.RemoteDevices: Devices behind a network, each with noise and ledger of its own (unit "example"); see
        `NoisedClients`.
    ridge.RemoteRidge: Devices in the round of `ridge`: one that was restarted meanwhile hears everybody's sums
        again.
    rounds.RemoteRounds: Devices who `Train`, each with the settings that `network.begin` has said; `attempt` is
        nothing to them.
"""
