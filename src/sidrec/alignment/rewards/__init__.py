"""Rewards: what a rollout is worth, one file each, and their mixture.

`build(context, config)` returns something that scores `Rollouts`; one that learns does so there.
"""
