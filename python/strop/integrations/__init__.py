"""strop inside other people's trainers. Nothing here is imported by ``import strop``, nor imports what it patches."""
