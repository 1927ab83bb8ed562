"""The Python API: what `import nanolm` offers (see docs/python_api.md). It calls what the commands call."""
