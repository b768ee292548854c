"""Structure-aware image inpainting at the speed of the hardware.

Public names are those of ``__init__.pyi``. They are loaded on first use, so that ``import fastinpaint`` stays cheap and
loads no kernel.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
