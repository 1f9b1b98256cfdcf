"""A fleet of GPU hosts in virtual time, to see how well it is used, not how fast the gateway is."""
