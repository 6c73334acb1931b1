"""TRL's trainers on rows that are rendered and masked already."""
