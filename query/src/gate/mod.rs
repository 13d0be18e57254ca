//! The gate: what every SQL text passes before it runs, the same at every door.
//!
//! 1. [`text`]: size, tokens, operators, nesting and literals are bounded on the token stream, before a parser recurses.
//! 2. [`statement`]: parsed in a bounded number of steps (`stepped`); exactly one statement of a kind that reads, and how many tables it reads in the end.
//! 3. [`plan`]: the logical plan holds no node that writes or leaves the tenant's tables.
//! 4. [`functions`]: functions that blow up their input are bounded by what they would produce.
//! 5. [`guard`]: the physical plan yields and stops when told to; [`rows`]: it does not multiply what is large already.

pub(crate) mod functions;
pub(crate) mod guard;
pub(crate) mod plan;
pub(crate) mod rows;
pub(crate) mod statement;
mod stepped;
pub(crate) mod text;
