"""Scoring models on tasks."""
