"""One Prefect task per step: settings and references in, a reference out."""
