"""Small reproductions of three theoretical claims about attention: README.md states them."""
