//! The query layer from outside: SQL, gate, tenants, doors, cancellation.

mod cancel;
mod columns;
mod doors;
mod fixture;
mod hostile;
mod hostile_text;
mod moving;
mod pushed;
mod scan;
mod slt;
mod tail;
mod tenants;
mod twin;
mod whole;
