"""Hallucination benchmarks as their authors define them: answers in, figures with intervals out, no model."""
