"""Files to tensors, as a model's metadata says: images, texts, windows of large images."""
