"""What fine-tuning did to a model: pictures of both with the same noise, several rewards, diversity, KL, one page."""
