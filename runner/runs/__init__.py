"""What a run leaves behind: its folder, checkpoints, the state of the code, the model card, the hub."""
