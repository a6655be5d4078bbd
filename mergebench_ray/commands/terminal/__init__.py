"""The commands as they are typed: options in, tables and lines out.

Nothing slow is imported before a call is checked.
"""
