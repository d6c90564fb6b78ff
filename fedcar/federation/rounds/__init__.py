"""A round: who is asked, what comes back, what the server makes of it."""
