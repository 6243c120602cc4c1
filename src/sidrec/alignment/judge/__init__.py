"""The personalised semantic judge: aspect evidence, weights of each user, several back ends.

`judge.Judge` is the reward; `aspects` says what is judged; `embedded`, `similarity`, `endpoint` and
`local` are the back ends; `weights` makes one score of the aspects; `choosing` picks the groups.
"""
