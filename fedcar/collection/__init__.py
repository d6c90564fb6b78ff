"""Documents, questions and judgements: read, checked, split, imported."""
