"""Faults on purpose, while a job runs, and proof that nothing was lost, doubled or wrong (scripts/chaos)."""
