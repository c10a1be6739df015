"""The study of what the format of a prompt does to a state vector."""
