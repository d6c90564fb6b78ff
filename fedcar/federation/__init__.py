"""Federation: many clients train one retriever, and no question leaves its client.

`round` is the algorithm, `client` and `server` its two sides, `local` runs both in this process.
"""
