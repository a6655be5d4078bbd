"""What a model family is: what its tensors' names mean, and which settings say what they compute."""
