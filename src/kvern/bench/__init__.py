"""Measuring a server over HTTP (open loop) and the engine in process (offline batches)."""
