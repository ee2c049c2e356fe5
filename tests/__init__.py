"""The tests. A package, because torch-fidelity installs one of this name."""
