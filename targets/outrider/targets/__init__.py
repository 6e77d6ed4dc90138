"""The board catalogue, cross toolchains and emulation."""
