"""Inputs of a parity check: random, real, extreme, and adversarial."""
