"""Plain PyTorch reference of each operator; imports nothing but torch and its siblings."""
