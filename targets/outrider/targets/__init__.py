"""The board catalogue, cross toolchains and emulation."""

from outrider.targets.catalog import Board, board_of, boards, get_target, target_names

__all__ = ["Board", "board_of", "boards", "get_target", "target_names"]
