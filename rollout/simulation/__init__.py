"""Recorded or made agents on a simulated cluster: job=simulate and job=plan."""
