"""What concerns the process itself: its limits, forks and locks, and what native Windows lacks of them."""
