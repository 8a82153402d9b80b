"""Tests of optional extras against released packages: a folder each, run by `scripts/test --extras`.

A module that needs the extra begins with `pytest.importorskip`, so that the core's tests pass without it. A
new folder is a line in scripts/test: its name, its environment, and the extras of pyproject.toml it takes.
"""
