"""Four bits a value, in blocks: NF4, FP4 and int4, with double quantization, laid out as bitsandbytes does."""
