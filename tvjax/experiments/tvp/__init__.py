"""Task-vector prompting on synthetic tasks: a population trained with and without the TVP-loss."""
