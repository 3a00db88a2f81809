"""The models that Strata trains itself: sprites, digits and a grammar."""
