"""The gateway's faces: what a client of the fleet talks to."""
