"""What a person looks at: the pages of a run and of a sweep, the leaderboard, and their figures."""
