"""Relative L2 errors that parity tests allow in float32 on the CPU, each with its reason.

Tighten freely; loosen only with a sentence.
"""

TOLERANCES = {
    "layer": 2e-6,  # two implementations of the same float32 sums; measured 1e-7 to 7e-7
    "layer_gradient": 1e-5,  # longer sums with cancellation, softmax in attention; measured up to 4e-6
    "zero_gradient": 1e-6,  # of the kernel's gradient: a bias before a norm has none, rounding remains
    "generator": 5e-5,  # 40 layers, each norm divides by a spread that carries rounding; measured 1.2e-5
    "discriminator": 1e-5,  # measured 2e-6
    "input": 1e-6,  # copies, products with 0 and 1, short sums
    "pixel_loss": 1e-6,  # sums in another order
    "pixel_loss_gradient": 1e-6,
    "adversarial_loss": 1e-5,  # means of a few logits of both signs
    "matching_loss": 1e-5,  # exponential of distances that were divided by a small minimum; measured 2e-6
    "vgg_loss": 1e-5,  # 13 convolutions of up to 4608 products
    "vgg_gradient": 1e-4,  # and back, with differences of nearly equal Gram matrices; measured 2e-5
    "training_term": 1e-4,  # generator and loss together
    "training_gradient_norm": 1e-2,  # signs of L1 errors near 0 flip with rounding; a plain port gives 4e-3
    "training_zero_gradient": 1e-4,  # absolute, see zero_gradient; kernels' norms lie between 0.002 and 30
}
