"""One device: its questions, and how it answers a server."""
