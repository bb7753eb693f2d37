"""ASAP: the row dual predicted from sliced potentials, and the whole of it in one launch."""
