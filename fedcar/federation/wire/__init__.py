"""What crosses a network, and the one module that imports Flower.

What other folders take:
    exchange.Carrier: What carries messages: sends one to a node, and brings what came back.
    exchange.Exchange: Asks each device its payload until all have answered, `enough` have, or the deadline is over.
    exchange.MOST: the bytes that a reply in parts may have where nothing else is said.
    exchange.Replies: What an exchange came to: payloads and failures by device, and the seconds it took.
    flower.Link: The server's connection to its SuperLink: devices, and one session at a time.
    flower.environment: The environment of a process of Flower: an own home, and no word to the outside.
    flower.knows: Ask the server whether it knows this device's key; FedcarError, with the way out, if not.
    flower.superlink_command: A SuperLink on loopback, with node authentication and nothing run on its own; `tls`:
        ca, certificate, key.
    flower.supernode_command: A SuperNode whose own interface is on loopback at `port`, connected to the server at
        `address`.
    flower.work: Answer the messages that a SuperNode at `address` receives, one at a time, until stopped.
    payload.GIVEN: the prefix of what a device gives out under epsilon.
    payload.Payload: One message: its kind, plain values, tensors by name.
    payload.REASONS: the fixed reasons that a device may give for a refusal.
    payload.REQUESTS: every kind of request with the form it must have.
    payload.STATE: the prefix of the state's tensors.
    payload.UPDATE: the prefix of an update's tensors.
    payload.Value: a plain value that may travel beside tensors.
    payload.named: The tensors whose name begins with the prefix, without it.
    payload.refusal: The reply of a device that cannot do what was asked; `found` is a version or a fingerprint.
    payload.with_prefix: Tensors under names that begin with this prefix.
    setup.Setup: What a request says of the run it belongs to; `settings` is empty before training.
    setup.head_of: Where a ledger stands, as it is written on the wire; ValueError for what is none.
    setup.heads_in_text: Where the server last saw a device's ledger in this run; before that, its ledgers over
        former runs.
    setup.heads_of: What `heads_in_text` was given; ValueError for what is none.
    setup.in_text: What `head_of` reads.
    setup.state_forms: Type and shape of every tensor of a state under epsilon: rows, and those of the adapter.
"""
