"""SLURM as one more way to start the workers of a sweep: what is submitted, its queue, what a task runs."""
