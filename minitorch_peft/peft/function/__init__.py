"""Methods that change the function: small modules in, around or beside the blocks."""
