"""What a dataset's published evaluation fixes: class names and preprocessing."""
