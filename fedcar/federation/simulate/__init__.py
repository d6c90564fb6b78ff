"""One machine plays all clients: `fedcar federate`."""
