"""Sums that add up over clients: ridge, mixture."""
