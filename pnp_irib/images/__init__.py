"""Pictures: files, tensors, sizes, tiles."""
