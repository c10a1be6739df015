"""Adaptive task vectors for a model of a TVP run, whose true task is known."""
