"""The policy gradient and its five choices: segments, advantages, ratios and surrogates, normalisation, correction.

`table` names the algorithms, `config` changes single choices of one, and `uses` refuses what would change nothing.
`credit` goes from trees to samples by way of `segments`, `advantages`, `tree_weights` and `normalisation`; `objective`
puts together what `losses` and `mismatch` have.
"""
