"""Files on disk: safetensors, training state, TensorFlow checkpoints. Knows arrays and names, no model."""
