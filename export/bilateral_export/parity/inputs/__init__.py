"""Inputs for parity: random, real, extreme, and adversarial."""
