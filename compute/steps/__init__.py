"""The work of each step of a run, one file a step, spread over Ray."""
