"""Language models as PyTorch modules.

Names of tensors end with their shape: `logits_BxTxV` has one logit per batch row, position and token. The same letters
stand in the formulas of `nanolm count`. Letters without an `x` between them are one flattened dimension (`HE`).

    B   sequences of a batch
    T   positions of the input, at most the context length
    S   keys that attention reads; T unless keys are cached or attention is blocked
    C   width of the residual stream (size.d_model)
    H   attention heads
    G   heads of keys and values (size.n_kv_heads); H by default
    D   width of a head's queries and keys (size.d_key)
    E   width of a head's values (size.d_value); D by default
    F   width inside the feed-forward network (size.d_ff)
    V   tokens of the vocabulary
    N   layers
    P   parameters
    A   parameters of low-rank adapters (model.lora)
    M   distinct attention masks
    I   blocks of blocked attention
    J   positions of one such block
    W   tokens of the window of model=mlp (model.window)
    R   pairs of dimensions that rotary position embedding rotates; D / 2

A number is a dimension of that size. Lower-case letters are local to a function, whose docstring explains them.
"""
