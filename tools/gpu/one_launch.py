"""Launches each kernel once, forward and backward, on one image and on 256, for Nsight Compute."""

from __future__ import annotations

import torch

from wae_kernels import nn


def main() -> None:
    encoder, decoder = nn.Encoder().cuda().half(), nn.Decoder().cuda().half()
    for batch in (1, 256):
        image = torch.randn(batch, 3, 224, 224, device="cuda").half().requires_grad_()
        decoder(*encoder(image), (224, 224)).float().square().mean().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
