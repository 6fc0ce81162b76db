//! JSON merge patch, canonical form, bounds.
