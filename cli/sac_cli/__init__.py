"""The `sac` command: a shell around sac_rag. Every command is one file here and mostly one call there."""
