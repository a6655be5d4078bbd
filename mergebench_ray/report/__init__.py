"""The report: one page and tables, made from the folders of runs alone."""
