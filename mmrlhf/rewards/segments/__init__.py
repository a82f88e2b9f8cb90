"""Rewards of parts: of the tokens of an answer, denoising steps, or skills, learnt from labels on spans and from comparisons."""
