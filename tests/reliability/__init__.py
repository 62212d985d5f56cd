"""Torture: what a library, an adapter, a model and an engine must survive, counted.

`make torture` runs it, docs/reliability.md is its report.
"""
