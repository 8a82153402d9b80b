"""Values, nothing else. This file makes the folder readable as pkg://rollout.conf."""
