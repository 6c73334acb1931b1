"""One run over several processes: how they start and meet, what each trains on, and what they add up."""
