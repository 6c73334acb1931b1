"""From files to labelled token rows: read, clean, split, render, mask, store."""
