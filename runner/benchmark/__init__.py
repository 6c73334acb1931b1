"""``recipe=benchmark``: speed, memory and operations of a training step, ours and others'."""
