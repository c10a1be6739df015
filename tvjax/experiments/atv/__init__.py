"""Adaptive task vectors on text tasks, beside every method that they are compared with."""
