"""Fine-tuning: from files of pairs to a trained model; one module for each part, each usable alone."""
