"""Numerical parity of what is served with what was trained; README.md says how it is judged."""
