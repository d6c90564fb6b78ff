"""`fedcar bench`: speed and quality beside what users run today, in the same run."""
