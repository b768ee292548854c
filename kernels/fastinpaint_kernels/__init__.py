"""Triton kernels and their launchers, one module for each operator; they know torch and Triton only.

Names inside kernels: ``p_`` pointer, ``b_`` value of a block, ``i_`` index of a block, ``o_`` offsets, ``m_`` mask,
``s_`` stride in elements; capitals are compile-time sizes.
"""
