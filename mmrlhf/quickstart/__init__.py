"""The whole loop once, on the tiny models: what `mmrlhf quickstart` runs."""
