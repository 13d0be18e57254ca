//! End-to-end tests of the program, in one binary.

mod story_lines;
