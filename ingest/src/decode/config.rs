//! The bounds of decoding.

use serde::{Deserialize, Serialize};

/// Bounds of one decoder. What passes a bound of one event costs that event or its field, never its neighbours.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeConfig {
    /// The longest text of one event. A longer one is rejected (`event_too_large`).
    pub event_bytes_max: usize,
    /// The most own fields of one event; what is beyond goes to the column `_rest`.
    pub event_fields_max: usize,
    /// How deeply the objects and arrays of one event may be nested. A deeper one is rejected (`too_deep`).
    pub depth_max: usize,
    /// The most distinct own fields of one tenant in one dataset; fields that come later go to the column `_rest`.
    pub fields_max: usize,
    /// The longest dotted name of a field; a field with a longer one goes to the column `_rest`.
    pub field_name_bytes_max: usize,
    /// The most events of one body; what comes after them is rejected (`too_many_events`) as one item.
    pub body_events_max: usize,
    /// The most rejected events of one body, each of which is in the answer and in `dead_letters`. A body with more is refused as
    /// a whole (`too_many_rejected`), and nothing of it is stored.
    pub rejected_items_max: usize,
    /// The most bytes that all columns of one Arrow body may take once dictionaries and views are written out and numbers that are
    /// kept as text are text. A body with more is refused as a whole (`body_too_large`).
    pub values_bytes_max: usize,
    /// The most of a rejected event's text that is kept in `dead_letters`.
    pub dead_letter_bytes_max: usize,
    /// The most sets of columns (each becomes a batch) that are built at a time for events of different layouts.
    pub layout_families_max: usize,
    /// The most layouts (sets of fields in an order) that are remembered.
    pub layouts_max: usize,
    /// The most steps (the text between two values of an event) of remembered shapes. Events of a remembered shape are read without
    /// parsing them in full, with the same result; 0 parses every event in full.
    pub shape_steps_max: usize,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        Self {
            event_bytes_max: 1 << 20,
            event_fields_max: 1_000,
            depth_max: 64,
            fields_max: 2_000,
            field_name_bytes_max: 1_024,
            body_events_max: 2_000_000,
            rejected_items_max: 10_000,
            values_bytes_max: 256 << 20,
            dead_letter_bytes_max: 1 << 16,
            layout_families_max: 32,
            layouts_max: 4_096,
            shape_steps_max: 16_384,
        }
    }
}
