"""The `bilateral` command: it parses, calls one function of the packages, and prints."""

EXIT_FAILED = 1  # the work was done, and its verdict is negative (parity, doctor, compare, bench)
EXIT_USAGE = 2  # the input is wrong
EXIT_INTERRUPTED = 130  # Ctrl-C, SIGTERM, or nobody reads the output any more
