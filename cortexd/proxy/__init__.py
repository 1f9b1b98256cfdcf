"""The byte path: one HTTP exchange with an upstream, carried to the client."""
