"""Stage 3: measure a compiled model beside its teacher."""
