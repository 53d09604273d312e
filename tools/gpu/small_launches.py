"""Launches all CUDA kernels on small images, forward and backward, in every mode, for compute-sanitizer."""

from __future__ import annotations

import torch

from wae_kernels import nn

MODES = ((torch.float16, True), (torch.bfloat16, True), (torch.float32, True), (torch.float32, False))


def main() -> None:
    for dtype, tf32 in MODES:
        torch.backends.cudnn.allow_tf32 = tf32
        encoder, decoder = nn.Encoder().cuda().to(dtype), nn.Decoder().cuda().to(dtype)
        for batch, height, width in ((1, 1, 1), (2, 37, 61), (1, 9, 130)):
            image = torch.randn(batch, 3, height, width, device="cuda").to(dtype)
            for x in (image, image.contiguous(memory_format=torch.channels_last), image[..., ::2, :]):
                x = x.detach().requires_grad_()
                decoder(*encoder(x), x.shape[2:]).float().square().mean().backward()
        raw = torch.randint(0, 256, (2, 3, 37, 61), device="cuda").byte()
        affine = [torch.full((3,), x, device="cuda", requires_grad=True) for x in (1 / 64, -2.0)]
        torch.cat(encoder(raw, *affine)).float().square().mean().backward()
        if dtype == torch.float32:  # float32 parameters, 16-bit results
            with torch.no_grad(), torch.autocast("cuda", torch.float16):
                decoder(*encoder(raw, *affine), raw.shape[2:])
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
