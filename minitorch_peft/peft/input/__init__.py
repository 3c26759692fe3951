"""Methods that change the input: vectors before it, or keys and values that every layer starts with."""
