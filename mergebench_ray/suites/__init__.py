"""Suites that ship with the package: a base, its specialists, and the tasks that score them."""
