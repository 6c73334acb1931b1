"""What a run will cost and how its config compares with what is usual, before anything is loaded."""
