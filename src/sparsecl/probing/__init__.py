"""Probes of implicit sparsity (notebook 04; paper, section Probes): do domains use different neurons, gradients, experts, subspaces?

`passes` runs a model over lines of text once for any number of readers; `activations` and `overlap` compare the strongest
neurons of domains, `gradients` their gradients, `routing` their experts, `drift` what fine-tuning does to hidden states.
"""
