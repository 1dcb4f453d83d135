"""Rollouts on a running server: asked for over a private socket, carried out by its supervisor."""
