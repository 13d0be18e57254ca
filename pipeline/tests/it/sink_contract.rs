//! The contract of a sink, held by the one in memory.

use crate::contract::memory_sink::{Memory, Refuses};
use crate::contract::sink::check;

#[test]
fn a_sink_in_memory_keeps_the_contract() {
    for refuses in [Refuses::AtWrite, Refuses::AtFlush] {
        check(&format!("{refuses:?}"), || Box::new(Memory::new(refuses)));
    }
}
