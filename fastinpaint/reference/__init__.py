"""Plain PyTorch truth for each operator; imports nothing but torch and its siblings."""
