"""Programs that nobody has read, run where they can neither reach nor harm anything; imports nothing of the rest."""
