"""Tasks of a Ray cluster: hydra/launcher=ray."""
