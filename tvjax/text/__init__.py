"""Text tasks asked of a language model: prompts, answers, examples, and what trains on them."""
