"""The frozen language model: what makes a text a vector."""
