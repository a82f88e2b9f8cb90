"""Vision-language policies and hallucination rewards (to come)."""
