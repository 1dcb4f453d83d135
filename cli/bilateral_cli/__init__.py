"""The `bilateral` command: it parses, calls one function of the packages, and prints."""
