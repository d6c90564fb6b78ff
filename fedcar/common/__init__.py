"""What every folder needs and none owns: files, folders, tensors, vectors, progress, history."""
