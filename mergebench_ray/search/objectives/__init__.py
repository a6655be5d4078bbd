"""What a search is after: one file each, found by name."""
