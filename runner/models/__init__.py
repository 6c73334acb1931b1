"""Base models and adapters: found, fetched, built, quantised and known by digest."""
