"""Gradio apps: the rating app."""
