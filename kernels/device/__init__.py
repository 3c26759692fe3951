"""What Triton needs from its host, without torch and without CuPy.

``triton`` imports Triton or says how to install it; ``launch`` runs a kernel on NumPy arrays (in Triton's interpreter,
or copied to the GPU and back) and on device arrays; ``driver``, ``cuda``, ``array`` and ``timing`` reach the CUDA
driver; ``compile``, ``machine_code`` and ``gate`` build kernels ahead of time and judge their machine code;
``roofline``, ``traffic`` and ``peers`` count what kernels must cost. Importing this package loads none of them.

**None of it has run on a GPU yet.** What is known without one: the kernels' values, in Triton's interpreter in float32
and float16; their machine code for A100 and H100 (registers, spills, tensor-core instructions, shared memory), from
the real compiler; the host's calls, against a mock of the driver that refuses what a driver would and computes one
kernel.
What is not: any time, which configuration of tiles is the fastest, bfloat16 and TF32 arithmetic (the interpreter has
neither), and whether a real driver agrees with the mock. ``python -m benchmarks.gpu`` answers all of these.
"""
