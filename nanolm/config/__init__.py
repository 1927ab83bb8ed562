"""The settings of a run: typed, bounded and documented."""
