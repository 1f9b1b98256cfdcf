"""One OpenAI- and Anthropic-compatible endpoint in front of a fleet of GPU hosts."""

__version__ = "0.1.0"
