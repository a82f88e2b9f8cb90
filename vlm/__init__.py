"""Vision-language policies, rewards of parts of answers, the methods that fine-tune on them, and hallucination benchmarks."""
