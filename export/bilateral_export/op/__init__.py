"""The operator `ai.bilateral::BilateralAttention`, version 1: see README.md in this folder."""
