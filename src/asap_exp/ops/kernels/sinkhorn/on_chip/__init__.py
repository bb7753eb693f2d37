"""All updates of a head with its plan on chip, in CUDA C++ compiled at run time."""
