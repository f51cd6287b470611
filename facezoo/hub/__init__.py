"""From a checkpoint name to tensors: cards, names, files and the Hugging Face Hub."""
