//! Tidegate: composes the parts.

fn main() {}
