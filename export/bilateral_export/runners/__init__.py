"""One way to execute a model per file, all behind the small `Runner` protocol."""
