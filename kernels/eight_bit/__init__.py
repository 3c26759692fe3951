"""Eight bits a value, in blocks, with a code of 256 values: the statistics of a 4-bit tensor, optimizer states."""
