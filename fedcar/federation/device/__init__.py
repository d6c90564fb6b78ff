"""One device: its questions, and how it answers a server.

What other folders take:
    device.Device: A device's questions, prepared, and the client that trains on them.
    device.documents_fingerprint: sha256 over the documents alone: what server and devices must have in common.
"""
