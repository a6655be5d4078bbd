"""A suite's lm-eval tasks and their data: found, checked, and made into items that can be asked and graded."""
