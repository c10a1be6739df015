"""A small language model, trained here on text tasks."""
