"""The gates of a low-rank adapter, one object each. Loads without torch: a formula needs it only when it runs.

For a frozen map W0 (d_out x d_in), input x and rank r, an adapter adds ``s B v`` to ``W0 x``. With sigma the logistic function::

    gate       multiplies       by                        parameters
    none                                                  0
    hidden     the input x      2 sigma(g * x + c)        2 d_in
    low-rank   z = A x          2 sigma(G z + c)          r^2 + r
    self       z                2 sigma(G x + c)          r d_in + r
    cross      z                2 sigma(G (W0 x) + c)     r d_out + r
    scalar     z                2 sigma(c)                1

Parameters start at zero, and 2 sigma(0) is exactly 1, so a fresh gate is *neutral*: the adapter equals LoRA (Hu et al. 2021,
arXiv 2106.09685) bit for bit. Gating a LoRA of a speech recognizer is the idea of arXiv 2406.02562, whose equations are not public
text: the four gates with a G or g are our own readings of the four places that the paper names. ``scalar`` is a known relative
that sees no input, one learned factor for each adapted map; it can be merged.
"""
