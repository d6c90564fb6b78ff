"""Training under differential privacy: the plan, the sums, the clients and their server."""
