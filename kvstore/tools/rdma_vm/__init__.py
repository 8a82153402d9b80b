"""A small emulated machine whose kernel has soft-RoCE, for RDMA verbs where there is no RDMA hardware.

Read `image` (what it boots from), `build` (where that comes from) and `guest` (one run of a command in it).
"""
