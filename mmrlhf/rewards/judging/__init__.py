"""A scorer or a vision-language model as a rater."""
