"""Who keeps memory, and in which order the queue is offered."""
