//! History in a store that answers questions (a database): which parts of a query it is asked, and how its answer is read.
//!
//! Filters, projection and limit come with the scan; sorts with a limit and simple aggregates are moved into the question by
//! a rule of the physical optimizer. What the store answers is joined to the log tail, of which the same is computed here.

pub(crate) mod exec;
pub(crate) mod filter;
pub(crate) mod push;
