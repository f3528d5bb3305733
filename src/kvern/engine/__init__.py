"""The engine: the control core (quiet), its event log, and the process around it."""
