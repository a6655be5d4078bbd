"""What a run's folder holds, and who won; the only place that knows its file names."""
