//! The JSON text of values that get no column.

use std::fmt::Write as _;

use simd_json::{Node as TapeNode, StaticNode};

use super::walk::{Rest, after};

/// Writes the values as one JSON object: dotted name to value; the values of the elements of one array of objects become one
/// array, padded with nulls.
pub(super) fn write_rest(rest: &mut [Rest], tape: &[TapeNode<'_>], into: &mut String) {
    rest.sort_by(|left, right| left.name.cmp(&right.name).then(left.element.is_some().cmp(&right.element.is_some())));
    into.push('{');
    let mut entries = rest.iter().peekable();
    let mut first = true;
    while let Some(entry) = entries.next() {
        if !std::mem::take(&mut first) {
            into.push(',');
        }
        write_text(&entry.name, into);
        into.push(':');
        let Some((_, count)) = entry.element else {
            write_value(tape, entry.at, into);
            continue;
        };
        into.push('[');
        let mut pending = Some(entry);
        for index in 0..count {
            if index > 0 {
                into.push(',');
            }
            match pending.and_then(|entry| entry.element.filter(|(at, _)| *at == index).map(|_| entry)) {
                Some(entry) => {
                    write_value(tape, entry.at, into);
                    pending = entries.next_if(|next| {
                        next.name == entry.name && next.element.is_some_and(|(at, of)| at > index && of == count)
                    });
                }
                None => into.push_str("null"),
            }
        }
        into.push(']');
    }
    into.push('}');
}

/// Writes the value at `at` as JSON.
fn write_value(tape: &[TapeNode<'_>], at: usize, into: &mut String) {
    match tape.get(at) {
        Some(TapeNode::String(text)) => write_text(text, into),
        Some(TapeNode::Static(StaticNode::Bool(value))) => write_display(value, into),
        Some(TapeNode::Static(StaticNode::I64(value))) => write_display(value, into),
        Some(TapeNode::Static(StaticNode::U64(value))) => write_display(value, into),
        // `Debug` writes the shortest text that reads back the same; a tape holds no infinite number.
        Some(TapeNode::Static(StaticNode::F64(value))) => write_display(&format_args!("{value:?}"), into),
        Some(TapeNode::Static(StaticNode::Null)) | None => into.push_str("null"),
        Some(TapeNode::Array { len, .. }) => {
            into.push('[');
            let mut item = at + 1;
            for index in 0..*len {
                if index > 0 {
                    into.push(',');
                }
                write_value(tape, item, into);
                item = after(tape, item);
            }
            into.push(']');
        }
        Some(TapeNode::Object { len, .. }) => {
            into.push('{');
            let mut item = at + 1;
            for index in 0..*len {
                if index > 0 {
                    into.push(',');
                }
                write_value(tape, item, into);
                into.push(':');
                write_value(tape, item + 1, into);
                item = after(tape, item + 1);
            }
            into.push('}');
        }
    }
}

fn write_display(value: &impl std::fmt::Display, into: &mut String) {
    // Writing to a string cannot fail.
    let _ = write!(into, "{value}");
}

/// Writes a JSON string.
pub(super) fn write_text(text: &str, into: &mut String) {
    into.push('"');
    for letter in text.chars() {
        match letter {
            '"' => into.push_str("\\\""),
            '\\' => into.push_str("\\\\"),
            '\n' => into.push_str("\\n"),
            '\r' => into.push_str("\\r"),
            '\t' => into.push_str("\\t"),
            control if u32::from(control) < 0x20 => {
                let _ = write!(into, "\\u{:04x}", u32::from(control));
            }
            other => into.push(other),
        }
    }
    into.push('"');
}
