"""The retriever: evidence and learned rows behind one search."""
