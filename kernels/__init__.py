"""Operations with a native (CPU), a Triton (GPU) and a plain torch implementation. Import as ``dp4tl_fast.kernels``."""
