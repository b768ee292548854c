"""The pooled attention in another network: a self-attention layer between the convolutions of a small classifier.

python examples/attention_layer.py --steps 100
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastinpaint as fi


class PooledSelfAttention(nn.Module):
    """(B, C, H, W) to the same; every pixel attends to keys that are max-pooled 2 x 2, H and W at least 2.

    Memory grows with H W, not with its square, so that it may stand at full resolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = max(channels // 8, 1)  # narrow heads: the scores are not scaled by 1 / sqrt(d)
        self.query = nn.Conv2d(channels, self.width, 1, bias=False)
        self.key_value = nn.Conv2d(channels, self.width + channels // 2, 1, bias=False)
        self.out = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.scale = nn.Parameter(torch.zeros(()))  # the layer begins as the identity

    def forward(self, x: Tensor) -> Tensor:
        """Add what each pixel gathers from the whole map."""
        query = self.query(x).flatten(2).transpose(1, 2)  # (B, H W, d)
        pooled = functional.max_pool2d(self.key_value(x), 2).flatten(2).transpose(1, 2)  # (B, H W / 4, d + C/2)
        key, value = pooled.split([self.width, pooled.shape[2] - self.width], dim=2)
        gathered = fi.pooled_attention(query, key, value)  # (B, H W, C/2)
        return x + self.scale * self.out(gathered.transpose(1, 2).unflatten(2, x.shape[2:]))


def classifier(classes: int, channels: int = 32) -> nn.Sequential:
    """A network from (B, 3, H, W) to (B, classes)."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), PooledSelfAttention(channels),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ReLU(), PooledSelfAttention(channels),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes),
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    images, labels = torch.rand(16, 3, 32, 32), torch.arange(16) % 4
    images[torch.arange(16), :, labels * 8, :] = 1  # a line whose height tells the class
    network = classifier(classes=4)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(parser.parse_args().steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    print(f"{(network(images).argmax(1) == labels).float().mean():.0%} of the training pictures are right")
