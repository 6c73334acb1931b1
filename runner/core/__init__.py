"""What every room stands on: errors, terminal, paths, signals, secrets, the environment."""
