"""Text-to-image policies and the methods that fine-tune them."""
