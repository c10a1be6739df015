"""The study of where and when task vectors form, over a grid of TVP runs."""
