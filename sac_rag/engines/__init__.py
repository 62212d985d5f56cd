"""Memories for engines other than ours: what each of them attends before it reads a question."""
