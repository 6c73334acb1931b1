"""What this machine has for fine-tuning, and what to do where something is missing."""
