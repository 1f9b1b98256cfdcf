"""One module per engine that a neuron can run."""
