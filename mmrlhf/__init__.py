"""mmrlhf: align text-to-image and vision-language models with people's preferences."""

__version__ = "0.1.0"
