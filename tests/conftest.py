"""For all tests: none depends on timing, so no example of a property has a deadline."""

from hypothesis import settings

settings.register_profile("idiolect", deadline=None)
settings.load_profile("idiolect")
