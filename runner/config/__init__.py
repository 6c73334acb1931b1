"""The run config as plain data: its keys, the checks on them, and where each value came from."""
