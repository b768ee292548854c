"""Structure-aware image inpainting at the speed of the hardware.

Public names are loaded on first use, so that ``import fastinpaint`` stays cheap and loads no kernel.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "canny": "fastinpaint.ops.canny",
    "canny_pyramid": "fastinpaint.ops.canny",
    "rgb_to_gray": "fastinpaint.ops.canny",
    "sobel_edges": "fastinpaint.ops.sobel_edges",
    "edge_priority": "fastinpaint.ops.edge_priority",
    "pyramid_structure_loss": "fastinpaint.ops.structure_loss",
    "pooled_attention": "fastinpaint.ops.pooled_attention",
    "patch_attention": "fastinpaint.ops.patch_attention",
    "instance_norm": "fastinpaint.ops.instance_norm",
    "use_backend": "fastinpaint.ops._backend",
    "BackendUnavailable": "fastinpaint.ops._backend",
    "InpaintGenerator": "fastinpaint.models.generator",
    "GeneratorOutput": "fastinpaint.models.generator",
    "assemble_input": "fastinpaint.models.inputs",
    "PatchDiscriminator": "fastinpaint.models.discriminator",
    "VGG19Features": "fastinpaint.models.vgg",
    "generator_from_tf": "fastinpaint.models.from_tensorflow",
    "discriminator_from_tf": "fastinpaint.models.from_tensorflow",
    "read_tf_checkpoint": "fastinpaint.checkpoint.tensorflow",
    "LossWeights": "fastinpaint.losses.objective",
    "InpaintObjective": "fastinpaint.losses.objective",
    "Inpainter": "fastinpaint.inference.inpainter",
}

__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fastinpaint' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
