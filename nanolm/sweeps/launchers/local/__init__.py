"""Worker processes on this machine: hydra/launcher=local."""
