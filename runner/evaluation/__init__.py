"""What a model says, and what it is worth: answers, metrics, losses, intervals, a chat."""
