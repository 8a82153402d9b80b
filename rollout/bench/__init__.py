"""The benchmark of the data paths: `scripts/bench_paths`. Replays alternate between ways to serve them.

A study is one row of figures, in a file of its own; it says what is replayed and what is compared. Nothing
here changes how a replay runs: every run is `python -m rollout job=replay`, and a step is some overrides.
"""
