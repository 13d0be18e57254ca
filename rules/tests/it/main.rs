//! Integration tests of the rules crate: rule text and events in, matches and alerts out.

mod archive;
mod cases;
mod conformance;
mod correlation;
mod correlation_faults;
mod correlation_features;
mod correlation_model;
mod correlation_size;
mod coverage;
mod differential;
mod evaluate;
mod explain;
mod feedback;
mod filters;
mod flatten;
mod folder;
mod hogs;
mod hostile;
mod lint;
mod log_sources;
mod model;
mod operator;
mod problems;
mod stream;
mod suppression;
