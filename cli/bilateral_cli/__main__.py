"""`python -m bilateral_cli` is the `bilateral` command."""

from bilateral_cli.main import run

run()
