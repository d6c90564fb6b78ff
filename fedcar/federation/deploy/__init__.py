"""The real federation: servers, devices, keys, runs."""
