"""The race: which candidates are scored on, paused or stopped, as a function of the item scores reported so far.

Pure: it starts nothing, asks nothing and keeps no clock. Whoever drives it (a scheduler of Ray Tune, the replay of a
finished run) reports item scores as looks complete, and does what the decisions say.
"""
