"""How good a retriever is: baselines, metrics, the table side by side."""
