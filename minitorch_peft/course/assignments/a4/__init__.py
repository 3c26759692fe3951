"""Assignment A4: kernels and QLoRA, from the sixteen values of NF4 to a kernel for the GPU."""
