"""What crosses a network, and the one module that imports Flower.

What other folders take:
    exchange.Carrier: What carries messages: sends one to a node, and brings what came back.
    exchange.Exchange: Asks each device its payload until all have answered, `enough` have, or the deadline is over.
    exchange.Replies: What an exchange came to: payloads and failures by device, and the seconds it took.
    flower.CLOCK_AHEAD: by how many seconds a device's clock may be ahead.
    flower.CLOCK_BEHIND: by how many seconds it may be behind.
    flower.CLOCK_LINE: how the front's answer to a device with a wrong clock begins.
    flower.Link: The server's connection to its SuperLink: devices, and one session at a time.
    flower.SIGNED_BY: the headers by which a device signs a request.
    flower.environment: The environment of a process of Flower: an own home, and no word to the outside.
    flower.knows: Ask the server whether it knows this device's key; FedcarError, with the way out, if not.
    flower.superlink_command: A SuperLink on loopback, with node authentication and nothing run on its own; `tls`:
        ca, certificate, key.
    flower.supernode_command: A SuperNode whose own interface is on loopback at `port`, connected to the server at
        `address`.
    flower.work: Answer the messages that a SuperNode at `address` receives, one at a time, until stopped.
    parts.RUBBISH: how the reason begins that marks a device.
    parts.rubbish: The reason that marks a device, where an error says it.
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
    schema.GREET: the schema of an answer to a greeting.
    schema.MOST_GRAMS: different words and word pairs that one question may have.
    schema.MOST_QUESTIONS: questions that anybody may have.
    schema.MOST_TRAINED: the most of a coordinate that is trained.
    schema.Numbers: A tensor of this type and shape, all of it finite and from `least` to `most`.
    schema.ROUNDING: by what share sums may pass their bounds, since they are rounded.
    schema.Schema: One kind of reply: its values, its tensors, and what holds of them together.
    schema.clipped: A mean of clipped parts, no longer than the clip norm.
    schema.count: The schema of counts of right held-out questions, by weights.
    schema.enrol: The schema of a device's numbers when it enrols.
    schema.noised: What a device gives out under epsilon, of these forms.
    schema.spread: Squared distances of features (width,), and how many there are.
    schema.statistics: Sums of ridge over the questions that a device enrolled with.
    schema.sums: Loss, gradient and Hessian of questions whose features are so far apart, at weights (F,).
    schema.taught: The schema of counts of right questions, by ridge's strengths.
    schema.train: An update whose tensors may have these forms (see `compress.forms`).
    schema.unseen: The schema of counts on questions of documents left out.
    setup.Setup: What a request says of the run it belongs to; `settings` is empty before training.
    setup.head_of: Where a ledger stands, as it is written on the wire; ValueError for what is none.
    setup.heads_in_text: Where the server last saw a device's ledger in this run; before that, its ledgers over
        former runs.
    setup.heads_of: What `heads_in_text` was given; ValueError for what is none.
    setup.in_text: What `head_of` reads.
    setup.state_forms: Type and shape of every tensor of a state under epsilon: rows, and those of the adapter.
"""
