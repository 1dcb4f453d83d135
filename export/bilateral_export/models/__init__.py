"""The models, each readable from top to bottom; README.md says what the paper fixes of them."""
