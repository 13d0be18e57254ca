//! The query layer from outside: SQL, gate, tenants, doors, cancellation.

mod cancel;
mod doors;
mod fixture;
mod hostile;
mod hostile_text;
mod moving;
mod pushed;
mod scan;
mod slt;
mod tenants;
mod twin;
mod whole;
