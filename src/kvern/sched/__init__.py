"""The mechanism: sequences, the ledger that alone changes state, and the scheduler that turns policies into plans."""
