"""A Hugging Face Space of the demo: upload this folder as a Space with the Gradio SDK."""

from facezoo.demo import launch

launch()
