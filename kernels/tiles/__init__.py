"""What the Triton kernels share: how a call reaches the device, addresses of a tile, the product that all build on."""
