"""What reports are made of: tables, figures, the page, a run's files. It knows no experiment and imports no jax."""
