"""What can be run, a record each (`base.Experiment`), which is imported if it is asked for."""

from tvjax.experiments.base import Experiment, experiment_of, loader_of, names, register

__all__ = ["Experiment", "experiment_of", "loader_of", "names", "register"]
