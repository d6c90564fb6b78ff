"""One machine plays all clients: `fedcar federate`.

What other folders take:
    federate.federate: Train one retriever over clients simulated in this process, without noise; central training
        for comparison.
    federate.plan: What `federate` would do with the same arguments, without doing it.
    noised.SharedOut: Which questions (rows) each client has, who asked each where persons are the unit, and how
        many units there are.
    noised.federate_under_epsilon: Train one retriever over clients that each noise their own sums (unit "example"),
        or over noised sums of clients.
    over_flower.over_flower: What `federate` puts its clients behind: a deployment in a temporary folder, which is
        gone afterwards.
    settings.Over: Puts clients behind a network: untrained retriever, each client's collection, folder of their
        ledgers if kept.
"""
