"""Stage 2: compile a teacher's layers into ASAP."""
