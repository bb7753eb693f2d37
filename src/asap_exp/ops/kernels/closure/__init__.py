"""The closure of a row dual in one launch."""
