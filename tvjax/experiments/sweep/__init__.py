"""A sweep over any fields of a run: its members as few populations as can be, and their numbers over seeds."""
