"""What Triton needs from its host, without torch and without CuPy.

``triton`` imports Triton or says how to install it; ``launch`` runs a kernel on NumPy arrays (in Triton's interpreter,
or copied to the GPU and back) and on device arrays; ``driver``, ``cuda``, ``array`` and ``timing`` reach the CUDA
driver; ``compile`` builds kernels ahead of time and reads their machine code. Importing this package loads none.
"""
