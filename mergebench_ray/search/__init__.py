"""The coefficient search: its space, its samplers, its loop through Ray Tune, and what it remembers."""
