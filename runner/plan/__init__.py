"""What a run will take before anything is loaded: parameters, memory, time, and what would fit."""
