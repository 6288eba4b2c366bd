"""The commands of `metaalign`: each reads its arguments first, and imports torch only when these are right."""
