"""All planted faults of training under epsilon, and their kinds."""

from support import faults_of_claims, faults_of_noise, faults_of_sums
from support.planting import FAULTS, Fault

__all__ = ["FAULTS", "KINDS", "Fault"]

KINDS = tuple(dict.fromkeys(one.kind for one in FAULTS))
assert all((faults_of_claims, faults_of_noise, faults_of_sums))  # each adds its own
