"""Objectives: what alignment minimises, one file each, of log-probabilities alone."""
