"""The parts of `table` and `instructions`."""
