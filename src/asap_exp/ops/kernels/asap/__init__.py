"""ASAP: the row dual predicted from sliced potentials, and the whole operator in one launch."""
