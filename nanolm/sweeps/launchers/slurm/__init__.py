"""Job arrays of Slurm: hydra/launcher=slurm."""
