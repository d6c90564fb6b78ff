"""How a retriever is trained: candidates from cheap to dear, and what selection keeps."""
