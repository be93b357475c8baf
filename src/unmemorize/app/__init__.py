"""The interactive page: `page` wires it up with Gradio, `fragments` writes what it shows."""
