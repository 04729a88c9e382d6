"""Operations in random order, checked against a model: see docs/random.md."""
