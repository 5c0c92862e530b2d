"""The policy gradient and its five choices: segments, advantages, ratios and surrogates, normalisation, correction.

`table` names the algorithms and `config` changes single choices of one. `credit` goes from trees to samples by way of
`segments`, `advantages`, `tree_weights` and `normalisation`; `objective` puts together what `losses` and `mismatch`
have.
"""
