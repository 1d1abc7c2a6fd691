"""The web face: thin, and the only room where gradio is imported."""
