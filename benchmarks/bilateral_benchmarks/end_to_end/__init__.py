"""A checkpoint to a checked, served answer, and what that took: the quickstart and the study."""
