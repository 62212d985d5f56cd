"""The tables and figures of the SAC paper (arXiv 2510.08907), made again on this machine: `sac reproduce`.

An experiment is an entry in a table; it names runs, which experiments share, and says what a page shows of them. A run
is a value that holds all that determines its result; it is computed once and kept as one JSON file.
"""
