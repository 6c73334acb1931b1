"""The speed of a training step on one GPU: compiled layers, CUDA graphs, and which of them a run can have."""
