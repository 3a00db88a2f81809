"""The work of each step of a run, one file a step, spread over Ray.

A step's door is a function of its file: `extract.write_activations`, `learn.train`,
`encode.encode`, `observed.observed_variables` and `recover.recover_graph`. `estimate` says
beforehand what they will take, and `statistics` gives moments and co-activation of activations out
of core. A step takes open tables or locations and its settings, and resumes what it finds begun.
"""
