"""Pure decisions over a frozen picture of the fleet: no I/O, no clock."""
