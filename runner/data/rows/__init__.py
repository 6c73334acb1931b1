"""One row by itself: the values it may hold, loss flags, tools and calls, and what of it was not read."""
