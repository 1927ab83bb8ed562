"""Sweeps: many runs from one command, which can be interrupted, repeated, extended and shared between processes."""
