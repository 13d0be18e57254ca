//! The composition of the server: opens the logs and the store, starts the run loop, deliveries and doors, and drains them.
