"""The cluster in virtual time: the scheduling policy of a real run, up to thousands of GPUs."""
