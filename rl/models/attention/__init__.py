"""Attention over packed rows, for every implementation: masks, FlexAttention, attention by segments on a CPU."""
