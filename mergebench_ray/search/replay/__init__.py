"""What racing would have cost and chosen in a run that is over: its stored item scores, driven through the race."""
