"""Rewards that read: language models, and vision-language models, with a scalar head."""
