"""The TVP-loss as a fine-tuning objective of a language model."""
