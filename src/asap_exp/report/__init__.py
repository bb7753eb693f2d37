"""Stage 4: tables, figures and a page, made from records alone."""
