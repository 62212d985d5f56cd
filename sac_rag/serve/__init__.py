"""The serving room: libraries over HTTP, in OpenAI's shapes and in our own, as a page, and for agents (MCP).

A shell: it asks open `SacRag`s and holds no logic of retrieval or answering. `settings` and `keys` say what is allowed,
`guard` holds requests to it, `libraries` names the libraries, `answering` brings answers onto the event loop; `chat`,
`responses`, `embeddings` and `documents` are the routes, `app` puts them together, `run` listens.
"""
