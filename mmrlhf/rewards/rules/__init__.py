"""Rewards that need no training, own functions, and combinations."""
