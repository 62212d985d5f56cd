"""The library room: compressed passages on disk, in one folder, under one transaction."""
