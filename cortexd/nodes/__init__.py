"""Typed calls to the node agents."""
