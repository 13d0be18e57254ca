//! A mapping resolved for one layout: each of its fields is a cell number, so that nothing is looked up by name per event.

use std::sync::Arc;

use arrow::datatypes::DataType;

use super::cost::Numbers;
use super::walk::{Cell, CellValue};
use crate::column::Atom;
use crate::mapping::Mapping;
use crate::mapping::rule::{Condition, Convert, From, Part, Rule, address_of, port_of};
use crate::mapping::time::{self, TimeUnit};

/// The fields of one event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'r, 't> {
    pub(super) cells: &'r [Cell<'t>],
    pub(super) items: &'r [Atom<'t>],
    /// The numbers as they were sent, where exactness matters.
    pub(super) numbers: Numbers<'t>,
}

impl<'t> Row<'_, 't> {
    /// The scalar of a cell; of a list, the first that is not null.
    #[inline]
    pub(super) fn atom(&self, cell: usize) -> Option<Atom<'t>> {
        match self.cells.get(cell)?.value {
            CellValue::Atom(atom) => Some(atom),
            CellValue::List { start, len } => {
                let items = self.items.get(start as usize..(start + len) as usize)?;
                items.iter().copied().find(|atom| *atom != Atom::Null)
            }
        }
    }

    /// The text of a cell, which is in `scratch` unless the cell is text. Empty text counts as absent.
    #[inline]
    fn text<'s>(&self, cell: usize, scratch: &'s mut String) -> Option<&'s str>
    where
        't: 's,
    {
        if let CellValue::Atom(Atom::Text(text)) = &self.cells.get(cell)?.value {
            return (!text.is_empty()).then_some(text);
        }
        match self.atom(cell)? {
            Atom::Text(text) => (!text.is_empty()).then_some(text),
            other => {
                scratch.clear();
                match self.number_text(cell) {
                    Some(text) => scratch.push_str(text),
                    None => other.write_text(scratch),
                }
                Some(scratch)
            }
        }
    }

    /// The number in a cell as it was sent, if that is known.
    fn number_text(&self, cell: usize) -> Option<&'t str> {
        self.numbers.at(self.cells.get(cell)?.at as usize)
    }

    /// The text of a number as it was sent, when that says more than `atom` does.
    pub(super) fn exact_text(&self, cell: usize, atom: Atom<'_>) -> Option<&'t str> {
        match atom {
            Atom::Float(_) => self.number_text(cell),
            _ => None,
        }
    }

    pub(super) fn holds(&self, cell: usize, condition: &Condition) -> bool {
        match self.atom(cell) {
            Some(Atom::Text(text)) => condition.holds(text),
            Some(Atom::Int(value)) => {
                let mut digits = [0; 20];
                condition.holds(decimal_digits(value, &mut digits))
            }
            Some(other) => {
                let mut text = String::new();
                other.write_text(&mut text);
                condition.holds(&text)
            }
            None => false,
        }
    }
}

/// Room for texts that are made, not taken from the event.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    text: String,
    lower: String,
}

/// Where the cells of a rule are.
#[derive(Debug)]
enum Source {
    Cell(usize),
    /// One for each field of the template, in order.
    Template(Box<[usize]>),
    Const,
}

/// A rule whose fields a layout has.
#[derive(Debug)]
pub(super) struct PlannedRule {
    mapping: Arc<Mapping>,
    place: RulePlace,
    source: Source,
    when: Box<[usize]>,
    unless: Box<[(usize, usize)]>,
    /// A field as it is, with neither condition nor conversion.
    plain: bool,
}

/// Where a rule stands in its mapping.
#[derive(Debug, Clone, Copy)]
enum RulePlace {
    Id(usize),
    Column(usize, usize),
}

/// What kind of value a core column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CoreKind {
    Text,
    Int,
    Time,
    Decimal,
}

impl CoreKind {
    fn of(data_type: &DataType) -> Self {
        match data_type {
            DataType::Int32 | DataType::Int64 => Self::Int,
            DataType::Timestamp(..) => Self::Time,
            DataType::Decimal128(..) => Self::Decimal,
            _ => Self::Text,
        }
    }
}

/// The rules that may fill one column of a layout.
#[derive(Debug)]
pub(super) struct PlannedColumn {
    /// Its index in the core schema.
    pub(super) core: usize,
    pub(super) kind: CoreKind,
    pub(super) rules: Box<[PlannedRule]>,
}

/// Resolves the rules of `mapping` with the cell number of each field that the layout has.
pub(super) fn columns(mapping: &Arc<Mapping>, cell_of: &dyn Fn(&str) -> Option<usize>) -> Box<[PlannedColumn]> {
    let schema = mapping.dataset.core_schema();
    let column = |(at, (core, rules)): (usize, &(usize, Vec<Rule>))| {
        let kind = CoreKind::of(schema.fields().get(*core)?.data_type());
        let place = |rule| RulePlace::Column(at, rule);
        let rules = resolve(mapping, rules, &place, cell_of);
        (!rules.is_empty()).then_some(PlannedColumn { core: *core, kind, rules })
    };
    mapping.columns.iter().enumerate().filter_map(column).collect()
}

/// Resolves the ways to an id.
pub(super) fn ids(mapping: &Arc<Mapping>, cell_of: &dyn Fn(&str) -> Option<usize>) -> Box<[PlannedRule]> {
    resolve(mapping, &mapping.ids, &RulePlace::Id, cell_of)
}

fn resolve(
    mapping: &Arc<Mapping>,
    rules: &[Rule],
    place: &dyn Fn(usize) -> RulePlace,
    cell_of: &dyn Fn(&str) -> Option<usize>,
) -> Box<[PlannedRule]> {
    let mut planned = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let cells: Option<Vec<usize>> = rule.needs().map(cell_of).collect();
        let Some(mut cells) = cells else { continue };
        let when = cells.split_off(cells.len() - rule.when.len()).into();
        let unless = rule.unless.iter().enumerate();
        let unless = unless.filter_map(|(at, condition)| cell_of(&condition.field).map(|cell| (at, cell))).collect();
        let source = match (&rule.from, cells.first()) {
            (From::Field(_), Some(cell)) => Source::Cell(*cell),
            (From::Template(_), _) => Source::Template(cells.into()),
            _ => Source::Const,
        };
        let plain = matches!(source, Source::Cell(_))
            && rule.convert == Convert::Plain
            && rule.map.is_empty()
            && rule.when.is_empty()
            && rule.unless.is_empty();
        planned.push(PlannedRule { mapping: mapping.clone(), place: place(at), source, when, unless, plain });
        let last = planned.last().is_some_and(|rule| matches!(rule.source, Source::Const));
        if last && rule.when.is_empty() && rule.unless.is_empty() {
            break;
        }
    }
    planned.into()
}

impl PlannedRule {
    fn rule(&self) -> Option<&Rule> {
        match self.place {
            RulePlace::Id(at) => self.mapping.ids.get(at),
            RulePlace::Column(column, at) => self.mapping.columns.get(column)?.1.get(at),
        }
    }

    /// The cell that this rule copies as it is.
    pub(super) fn plain_cell(&self) -> Option<usize> {
        match self.source {
            Source::Cell(cell) if self.plain => Some(cell),
            _ => None,
        }
    }

    fn applies(&self, rule: &Rule, row: &Row<'_, '_>) -> bool {
        rule.when.iter().zip(&self.when).all(|(condition, cell)| row.holds(*cell, condition))
            && !self
                .unless
                .iter()
                .any(|(at, cell)| rule.unless.get(*at).is_some_and(|condition| row.holds(*cell, condition)))
    }

    /// The rule's text for an event.
    pub(super) fn text<'s, 't: 's>(&'s self, row: &Row<'_, 't>, scratch: &'s mut Scratch) -> Option<&'s str> {
        let Scratch { text: scratch, lower } = scratch;
        if let Some(cell) = self.plain_cell() {
            return row.text(cell, scratch);
        }
        let rule = self.rule()?;
        if !self.applies(rule, row) {
            return None;
        }
        let text = match (&self.source, &rule.from) {
            (Source::Cell(cell), _)
                if rule.convert == Convert::Text && !matches!(row.atom(*cell), Some(Atom::Text(_))) =>
            {
                return None;
            }
            (Source::Cell(cell), _) => row.text(*cell, scratch)?,
            (Source::Template(cells), From::Template(parts)) => fill_template(parts, cells, row, scratch)?,
            (_, From::Const(text)) => text,
            _ => return None,
        };
        let text = match rule.convert {
            Convert::Ip => address_of(text),
            Convert::Port => port_of(text)?,
            Convert::LastPart => text.rsplit(['/', '\\', ':']).next()?,
            Convert::Plain | Convert::Text | Convert::Lower | Convert::Time(_) => text,
        };
        if rule.map.is_empty() && rule.convert != Convert::Lower {
            return (!text.is_empty()).then_some(text);
        }
        lower.clear();
        if text.is_ascii() {
            lower.push_str(text);
            lower.make_ascii_lowercase();
        } else {
            lower.extend(text.chars().flat_map(char::to_lowercase));
        }
        if rule.map.is_empty() {
            return Some(lower.as_str());
        }
        rule.map.get(lower.as_str()).map(String::as_str).or(rule.otherwise.as_deref())
    }

    /// The rule's whole number for an event.
    pub(super) fn int(&self, row: &Row<'_, '_>, scratch: &mut Scratch) -> Option<i32> {
        if let Some(Atom::Int(value)) = self.plain_cell().and_then(|cell| row.atom(cell)) {
            return i32::try_from(value).ok();
        }
        self.text(row, scratch)?.trim().parse().ok()
    }

    /// The rule's time for an event, in microseconds.
    pub(super) fn time(&self, row: &Row<'_, '_>, scratch: &mut Scratch) -> Option<i64> {
        let rule = self.rule()?;
        let unit = if let Convert::Time(unit) = rule.convert { unit } else { TimeUnit::Auto };
        if let Source::Cell(cell) = self.source
            && self.applies(rule, row)
        {
            match row.atom(cell)? {
                Atom::Int(value) => return time::from_int(value, unit),
                Atom::Float(value) => return time::from_float(value, unit),
                Atom::Text(text) => return time::from_text(text, unit),
                Atom::Null | Atom::Bool(_) | Atom::Big(_) => return None,
            }
        }
        time::from_text(self.text(row, scratch)?, unit)
    }
}

/// The text of a number, without an allocation: conditions on event codes are checked for each event.
fn decimal_digits(value: i64, into: &mut [u8; 20]) -> &str {
    let mut rest = value.unsigned_abs();
    let mut start = into.len();
    for slot in into.iter_mut().rev() {
        *slot = b'0' + (rest % 10) as u8;
        start -= 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    // 20 places hold the 19 digits of the longest and its sign.
    if value < 0 && start > 0 {
        start -= 1;
        if let Some(slot) = into.get_mut(start) {
            *slot = b'-';
        }
    }
    into.get(start..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default()
}

fn fill_template<'s>(parts: &[Part], cells: &[usize], row: &Row<'_, '_>, scratch: &'s mut String) -> Option<&'s str> {
    scratch.clear();
    let mut cells = cells.iter();
    for part in parts {
        match part {
            Part::Text(text) => scratch.push_str(text),
            Part::Field(_) => match row.atom(*cells.next()?)? {
                Atom::Text("") => return None,
                atom => atom.write_text(scratch),
            },
        }
    }
    Some(scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_number() {
        for value in [0, 7, -7, 4688, i64::MAX, i64::MIN] {
            assert_eq!(decimal_digits(value, &mut [0; 20]), value.to_string());
        }
    }
}
