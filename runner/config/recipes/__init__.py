"""What belongs to one recipe each: its section of the config, and the rules of its keys."""
