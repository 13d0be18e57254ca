//! Cases as folders.
