"""Clients behind a network, as the server sees them."""
