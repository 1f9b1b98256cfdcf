"""State and tasks: the fleet's picture, its poller, and the loads under way."""
