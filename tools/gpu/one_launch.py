"""One launch of each kernel on one image and on 256, for Nsight Compute."""

from __future__ import annotations

import torch

from wae_kernels import nn


@torch.no_grad()
def main() -> None:
    encoder, decoder = nn.Encoder().cuda().half(), nn.Decoder().cuda().half()
    for batch in (1, 256):
        decoder(*encoder(torch.randn(batch, 3, 224, 224, device="cuda").half()), (224, 224))
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
