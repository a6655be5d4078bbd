"""Merge domain-specialised language models and search for the best merge, in parallel on Ray."""
