"""ComfyUI's own code, from the pinned wheels, on a CPU with tiny random experts."""
