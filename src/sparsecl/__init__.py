"""Does a structured-sparse language model forget less? The helper package behind the notebooks.

One module, one room: `config` reads a study, `tree` knows where files lie, `records` writes them;
`suites` and `manifests` make data, `tokenizer`, `modeling`, `training` and `scoring` make and judge
models; `masks` and `conversion` hold the sparse topology; `continual` runs the domain stream;
`tables`, `metrics`, `statistics`, `figures` and `publication` turn records into the paper.
"""
