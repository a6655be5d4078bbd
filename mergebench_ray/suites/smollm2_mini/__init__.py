"""The built-in suite `smollm2-mini`: SmolLM2-135M-Instruct, five LoRA specialists, five generated domains."""

NAME = "smollm2-mini"
"""What users call it."""
