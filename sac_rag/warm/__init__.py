"""A warm process: it holds a library with its model, and answers what `sac ask` asks it through a Unix socket.

`place` says where the socket lies and who may use it, `client` asks, `server` answers. The client imports no model.
"""
