"""Task vectors of a language model on text tasks."""
