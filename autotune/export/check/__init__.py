"""What vLLM finds in a folder, and what is wrong there."""
