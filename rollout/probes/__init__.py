"""What a machine offers a job, and `job=doctor`, which asks all probes of all rooms."""
