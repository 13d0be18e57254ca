//! State that people edit, rebuilt from `changes`.
