"""TensorFlow checkpoints without TensorFlow. Needs google-crc32c, the extra ``convert``."""

from fastinpaint.checkpoint.tensorflow.bundle import is_optimizer_slot, read_tf_checkpoint
from fastinpaint.checkpoint.tensorflow.locate import find_tf_checkpoint

__all__ = ["find_tf_checkpoint", "is_optimizer_slot", "read_tf_checkpoint"]
