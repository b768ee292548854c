from .checkpoint.tensorflow import read_tf_checkpoint as read_tf_checkpoint
from .inference.inpainter import Inpainter as Inpainter
from .losses.objective import InpaintObjective as InpaintObjective
from .losses.objective import LossWeights as LossWeights
from .models.discriminator import PatchDiscriminator as PatchDiscriminator
from .models.from_tensorflow import discriminator_from_tf as discriminator_from_tf
from .models.from_tensorflow import generator_from_tf as generator_from_tf
from .models.generator import GeneratorOutput as GeneratorOutput
from .models.generator import InpaintGenerator as InpaintGenerator
from .models.inputs import assemble_input as assemble_input
from .models.inputs import assemble_known_input as assemble_known_input
from .models.vgg import VGG19Features as VGG19Features
from .ops._backend import BackendUnavailable as BackendUnavailable
from .ops._backend import use_backend as use_backend
from .ops.canny import canny as canny
from .ops.canny import canny_pyramid as canny_pyramid
from .ops.canny import rgb_to_gray as rgb_to_gray
from .ops.conv2d import conv2d as conv2d
from .ops.edge_priority import edge_priority as edge_priority
from .ops.instance_norm import instance_norm as instance_norm
from .ops.patch_attention import patch_attention as patch_attention
from .ops.pooled_attention import pooled_attention as pooled_attention
from .ops.sobel_edges import sobel_edges as sobel_edges
from .ops.structure_loss import pyramid_structure_loss as pyramid_structure_loss

__version__: str
