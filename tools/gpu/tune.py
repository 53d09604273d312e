"""Runs Triton's tune() on one image and on 64, and times its choice against the CUDA kernels."""

from __future__ import annotations

from functools import partial

import torch
from triton.testing import do_bench

from wae_kernels import backends, nn
from wae_kernels.triton import tune


@torch.no_grad()
def main() -> None:
    for batch in (1, 64):
        encoder = nn.Encoder().cuda().half()
        image = torch.randn(batch, 3, 224, 224, device="cuda").half()
        tile = tune("encode", image, *encoder.parameters())
        times = {}
        for name in ("cuda", "triton"):
            with backends.use(name):
                times[name] = f"{1e3 * do_bench(partial(encoder, image), return_mode='median'):.1f} us"
        print("RESULT", batch, tile, times, flush=True)


if __name__ == "__main__":
    main()
