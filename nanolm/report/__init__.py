"""Reports on runs: one HTML file that opens offline, and its figures as PNG."""
