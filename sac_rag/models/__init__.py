"""Where weights come from: pinned defaults, folders, GGUF files, hub ids, and the adapters we ship."""
