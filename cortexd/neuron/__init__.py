"""The node agent: loads models on this host and serves them."""
