"""Does what is served compute what was trained? README.md says how that is decided."""
