"""Alignment: preferences and rewards that make a trained generator better than its logs.

Objectives are pure functions of the log-probabilities in `values`; rewards score rollouts.
"""
