"""The pyramid structure loss in a training loop of your own: a small U-Net whose decoder also predicts gradients.

python examples/structure_loss.py --steps 200
"""

import argparse

import torch
from torch import Tensor, nn

import fastinpaint as fi


class UNet(nn.Module):
    """(B, 4, H, W): picture and mask -> picture (B, 3, H, W), gradients (B, 6, H, W) and (B, 6, H/2, W/2)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(4, width, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=2, dilation=2), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.ReLU())
        self.half_gradients = nn.Conv2d(2 * width, 6, 1)
        self.full_gradients = nn.Conv2d(2 * width, 6, 1)
        self.picture = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Predict the picture, and gradients at both sizes."""
        skip = self.encode(inputs)
        middle = self.middle(self.down(skip))
        full = torch.cat([self.up(middle), skip], dim=1)
        return self.picture(full).tanh(), [self.full_gradients(full), self.half_gradients(middle)]


def train(batches: list[Tensor], steps: int, width: int = 32) -> list[float]:
    """Train on batches of pictures (B, 3, H, W) in [-1, 1], H and W even; return the loss of each step."""
    network = UNet(width)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for step in range(steps):
        image = batches[step % len(batches)]
        height, width = image.shape[2:]
        mask = image.new_zeros(len(image), 1, height, width)
        mask[..., height // 4 : height // 2, width // 4 : width // 2] = 1  # 1 = hole
        predicted, gradients = network(torch.cat([image * (1 - mask), mask], dim=1))
        loss = (predicted - image).abs().mean() + 0.1 * fi.pyramid_structure_loss(image, gradients)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    curve = train([torch.rand(4, 3, 16, 16).repeat_interleave(8, 2).repeat_interleave(8, 3) * 2 - 1],
                  parser.parse_args().steps)  # fmt: skip
    print(f"loss {curve[0]:.3f} -> {curve[-1]:.3f}")
