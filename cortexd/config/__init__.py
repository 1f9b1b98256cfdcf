"""The configuration: TOML and environment become frozen Structs."""
