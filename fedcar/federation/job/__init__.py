"""What every federated job does around its rounds, simulated or real."""
