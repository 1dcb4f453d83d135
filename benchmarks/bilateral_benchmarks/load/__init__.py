"""Load on a server: when requests are sent, who sends them, and what came back."""
