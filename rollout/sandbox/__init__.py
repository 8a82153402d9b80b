"""Where a model's own code runs: without network, host files or other processes, and within limits."""
