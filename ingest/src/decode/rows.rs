//! From the tape of an event to a row of a family.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use simd_json::Node as TapeNode;
use tidegate_events::{Dataset, IdGenerator, REST_COLUMN, dedup_key};
use tidegate_pipeline::EventBatch;

use super::config::DecodeConfig;
use super::cost::Numbers;
use super::family::{EVENT_ID, Family, ORG_ID, RECEIVED_TIME, SOURCE, TIME};
use super::layout::{Layouts, Plan, Slot, is_reserved};
use super::plan::{CoreKind, Row, Scratch};
use super::rest::write_rest;
use super::scalar::Unescaped;
use super::shape::{Matched, Shapes};
use super::walk::{CellValue, Rest, WalkBounds, Walked, Walker};
use super::{BodyError, Counts, IngestError, RowRef};
use crate::column::Atom;
use crate::mapping::{Mappings, decimal};

/// What the rows of one body have in common.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) org_id: Arc<str>,
    pub(super) dataset: Dataset,
    pub(super) source: Option<Arc<str>>,
    pub(super) received_us: i64,
    pub(super) idempotency_key: Option<Arc<str>>,
    pub(super) request_id: Arc<str>,
    /// The body's number since the last flush.
    pub(super) body: u32,
    /// The mapping that `source` names.
    pub(super) mapping: Option<usize>,
    /// The number of the tenant and dataset.
    pub(super) scope: usize,
}

/// The own fields of one tenant in one dataset.
#[derive(Debug, Default)]
struct Scope {
    fields: HashSet<Arc<str>>,
    keys_learnt: usize,
}

/// A tenant may teach this many keys of objects for each own field that it may have: the keys between the root and a field.
const KEYS_PER_FIELD: usize = 4;
/// Names are forgotten at a flush once there are this many of all tenants.
const NAMES_MAX: usize = 1 << 18;
/// Tenants whose fields are remembered.
const SCOPES_MAX: usize = 1 << 14;
/// Verdicts on (layout, tenant) that are remembered.
const VERDICTS_MAX: usize = 1 << 16;
/// The columns of all families that are kept for the next batch.
const COLUMNS_MAX: usize = 1 << 14;
/// Families are sorted anew after so many flushes, so that columns which went out of use do not shape them for ever.
const FLUSHES_MAX: u32 = 1 << 12;

/// Builds rows.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) walker: Walker,
    pub(super) layouts: Layouts,
    config: DecodeConfig,
    scopes: Vec<Scope>,
    scope_of: HashMap<(Arc<str>, Dataset), usize>,
    /// Which cells of a layout its tenant may not have as own fields.
    verdicts: FxHashMap<(usize, usize), Box<[usize]>>,
    generation: u64,
    pub(super) ids: IdGenerator,
    pub(super) counts: Counts,
    spare: Option<Walked<'static>>,
    pub(super) shapes: Shapes,
    spare_values: Vec<Atom<'static>>,
    unescaped: Unescaped,
    rest: String,
    scratch: Scratch,
    text: String,
    taken: Vec<usize>,
    rows: usize,
    flushes: u32,
    seed: u64,
}

impl Rows {
    pub(super) fn new(mappings: Arc<Mappings>, config: DecodeConfig, seed: u64) -> Self {
        Self {
            walker: Walker::new(seed),
            layouts: Layouts::new(mappings, config.layouts_max, config.layout_families_max),
            shapes: Shapes::new(config.shape_steps_max),
            config,
            scopes: Vec::new(),
            scope_of: HashMap::new(),
            verdicts: FxHashMap::default(),
            generation: 0,
            ids: IdGenerator::new(seed),
            counts: Counts::default(),
            spare: None,
            spare_values: Vec::new(),
            unescaped: Unescaped::default(),
            rest: String::new(),
            scratch: Scratch::default(),
            text: String::new(),
            taken: Vec::new(),
            rows: 0,
            flushes: 0,
            seed,
        }
    }

    /// Rows since the last flush.
    pub(super) fn len(&self) -> usize {
        self.rows
    }

    /// The number of this tenant and dataset.
    pub(super) fn scope(&mut self, org_id: &Arc<str>, dataset: Dataset) -> usize {
        if let Some(scope) = self.scope_of.get(&(org_id.clone(), dataset)) {
            return *scope;
        }
        if self.scopes.len() >= SCOPES_MAX {
            self.scopes.clear();
            self.scope_of.clear();
            self.verdicts.clear();
        }
        self.scopes.push(Scope::default());
        self.scope_of.insert((org_id.clone(), dataset), self.scopes.len() - 1);
        self.scopes.len() - 1
    }

    /// Appends the event whose object starts the tape. Of an event with a `text` the shape is learnt.
    pub(super) fn event(
        &mut self,
        origin: &Origin,
        item: u32,
        (tape, text): (&[TapeNode<'_>], Option<&[u8]>),
        numbers: Numbers<'_>,
    ) {
        let mut walked = self.spare.take().unwrap_or_default().recycle();
        let learnt = self.scopes.get(origin.scope).map_or(0, |scope| scope.keys_learnt);
        let bounds = WalkBounds {
            fields_max: self.config.event_fields_max,
            name_bytes_max: self.config.field_name_bytes_max,
            new_keys_max: (self.config.fields_max.saturating_mul(KEYS_PER_FIELD)).saturating_sub(learnt),
        };
        let new_keys = self.walker.walk(tape, bounds, &mut walked);
        if new_keys > 0
            && let Some(scope) = self.scopes.get_mut(origin.scope)
        {
            scope.keys_learnt += new_keys;
        }
        self.counts.duplicate_keys += walked.duplicate_keys as u64;
        let mut layout = self.layouts.layout_of(origin.dataset, &walked.cells, &self.walker.names);
        if self.refuse_fields(layout, origin.scope, &mut walked) {
            layout = self.layouts.layout_of(origin.dataset, &walked.cells, &self.walker.names);
        }
        let row = Row { cells: &walked.cells, items: &walked.items, numbers };
        let plan = self.layouts.plan_of(layout, origin.mapping, &row, &mut self.walker.names);
        let mut rest = std::mem::take(&mut self.rest);
        rest.clear();
        if !walked.rest.is_empty() {
            write_rest(&mut walked.rest, tape, &mut rest);
        }
        self.append(origin, item, plan, &row, &rest);
        if let Some(text) = text.filter(|_| walked.duplicate_keys == 0) {
            let fields_max = self.config.event_fields_max;
            self.shapes.learn((text, tape), &mut self.walker.names, (&walked, &rest), fields_max);
        }
        self.rest = rest;
        self.spare = Some(walked.recycle());
    }

    /// Appends the event at `at` of `text` if its shape is known, and if what follows it does; the place after it.
    pub(super) fn known_event(
        &mut self,
        origin: &Origin,
        item: u32,
        (text, at): (&str, usize),
        follows: impl Fn(&[u8], usize) -> bool,
    ) -> Option<usize> {
        let mut values = recycle(std::mem::take(&mut self.spare_values));
        let mut unescaped = std::mem::take(&mut self.unescaped);
        unescaped.clear();
        let matched = self.shapes.read(text, at, &mut values, &mut unescaped);
        let matched = matched
            .filter(|known| known.end - at <= self.config.event_bytes_max && follows(text.as_bytes(), known.end));
        let mut done = None;
        unescaped.fill(&mut values);
        if let Some(matched) = matched {
            let mut walked = self.spare.take().unwrap_or_default().recycle();
            done = self.known_row(origin, item, matched, &values, &mut walked).map(|()| matched.end);
            self.spare = Some(walked.recycle());
        }
        self.spare_values = recycle(values);
        self.unescaped = unescaped;
        done
    }

    #[inline]
    fn known_row<'t>(
        &mut self,
        origin: &Origin,
        item: u32,
        matched: Matched,
        values: &[Atom<'t>],
        walked: &mut Walked<'t>,
    ) -> Option<()> {
        let nulls = self.shapes.place(matched, values, walked)?;
        let known = if nulls == 0 { self.shapes.layout(matched, self.layouts.generation) } else { None };
        let layout = match known {
            Some(layout) => layout,
            None => {
                let layout = self.layouts.layout_of(origin.dataset, &walked.cells, &self.walker.names);
                if nulls == 0 {
                    self.shapes.set_layout(matched, self.layouts.generation, layout);
                }
                layout
            }
        };
        // What is refused goes to the rest, which is made from a tape.
        if !self.verdict(layout, origin.scope, walked).is_empty() {
            return None;
        }
        let row = Row { cells: &walked.cells, items: &walked.items, numbers: Numbers::NONE };
        let plan = self.layouts.plan_of(layout, origin.mapping, &row, &mut self.walker.names);
        let rest = self.shapes.rest(matched);
        self.append(origin, item, plan, &row, rest.as_deref().unwrap_or_default());
        Some(())
    }

    /// The cells of a layout that its tenant may not have as own fields.
    #[inline]
    fn verdict(&mut self, layout: usize, scope: usize, walked: &Walked<'_>) -> &[usize] {
        if self.generation != self.layouts.generation || self.verdicts.len() > VERDICTS_MAX {
            self.generation = self.layouts.generation;
            self.verdicts.clear();
        }
        if !self.verdicts.contains_key(&(layout, scope)) {
            let refused = self.judge(scope, walked);
            self.verdicts.insert((layout, scope), refused);
        }
        self.verdicts.get(&(layout, scope)).map(|refused| &**refused).unwrap_or_default()
    }

    /// Moves the cells of fields that the tenant may not have (any more) to the rest; true when there were any.
    #[inline]
    fn refuse_fields(&mut self, layout: usize, scope: usize, walked: &mut Walked<'_>) -> bool {
        let refused: Box<[usize]> = self.verdict(layout, scope, walked).into();
        if refused.is_empty() {
            return false;
        }
        self.counts.fields_refused += refused.len() as u64;
        let names = &self.walker.names;
        for at in &refused {
            if let Some(cell) = walked.cells.get(*at) {
                walked.rest.push(Rest {
                    name: names.name(cell.field).to_string(),
                    at: cell.at as usize,
                    element: None,
                });
            }
        }
        let mut at = 0;
        walked.cells.retain(|_| {
            at += 1;
            refused.binary_search(&(at - 1)).is_err()
        });
        true
    }

    #[cold]
    fn judge(&mut self, scope: usize, walked: &Walked<'_>) -> Box<[usize]> {
        let Some(scope) = self.scopes.get_mut(scope) else { return Box::default() };
        let mut refused = Vec::new();
        for (at, cell) in walked.cells.iter().enumerate() {
            let name = self.walker.names.name(cell.field);
            if is_reserved(name) {
                refused.push(at);
            } else if !scope.fields.contains(name) {
                if scope.fields.len() < self.config.fields_max {
                    scope.fields.insert(name.clone());
                } else {
                    refused.push(at);
                }
            }
        }
        refused.into()
    }

    /// Admits the columns of an Arrow stream as own fields of their tenant.
    ///
    /// # Errors
    /// `too_many_fields`, and none is admitted, when they are more than it may have.
    pub(super) fn admit<'n>(&mut self, scope: usize, names: impl Iterator<Item = &'n str>) -> Result<(), BodyError> {
        let Some(scope) = self.scopes.get_mut(scope) else { return Ok(()) };
        let new: Vec<&str> = names.filter(|name| !scope.fields.contains(*name)).collect();
        if scope.fields.len() + new.len() > self.config.fields_max {
            let reason = format!("with these columns there would be more than {} own fields", self.config.fields_max);
            return Err(BodyError { code: "too_many_fields", reason });
        }
        scope.fields.extend(new.into_iter().map(Arc::from));
        Ok(())
    }

    /// Appends a row to the family of its plan.
    fn append(&mut self, origin: &Origin, item: u32, plan: usize, row: &Row<'_, '_>, rest: &str) {
        let rest_field = if rest.is_empty() { None } else { Some(self.walker.names.field(REST_COLUMN)) };
        let Self { layouts, scratch, taken, counts, text, ids, .. } = self;
        let Some((plan, family)) = layouts.plan(plan) else { return };
        family.core_number(RECEIVED_TIME, i128::from(origin.received_us));
        family.core_text(ORG_ID, &origin.org_id);
        family.core_text(SOURCE, origin.source.as_deref().unwrap_or(&plan.name));
        taken.clear();
        fill_core(plan, family, row, scratch, taken);
        if family.core.get(TIME).is_some_and(|column| column.len() == family.len()) {
            let tried = plan.columns.iter().any(|column| column.core == TIME);
            counts.times_unparsable += u64::from(tried);
            family.core_number(TIME, i128::from(origin.received_us));
        }
        let key = match own_id(plan, row, scratch) {
            Some(id) => {
                family.core_text(EVENT_ID, id);
                dedup_key(&origin.org_id, origin.dataset as u8, id)
            }
            None => match &origin.idempotency_key {
                Some(idempotency_key) => {
                    text.clear();
                    // Writing to a string cannot fail.
                    let _ = write!(text, "{idempotency_key}:{item}");
                    family.core_text(EVENT_ID, text);
                    dedup_key(&origin.org_id, origin.dataset as u8, text)
                }
                None => {
                    let id = ids.next(origin.received_us);
                    family.core_ascii(EVENT_ID, &id);
                    0
                }
            },
        };
        fill_own(plan, family, row, taken, text);
        if let Some(field) = rest_field {
            let column = family.column_of(field);
            family.own_atom(column, Atom::Text(rest));
        }
        family.end_row(RowRef { body: origin.body, item }, key);
        self.rows += 1;
    }

    /// All rows as batches, and the builders empty again.
    pub(super) fn flush(&mut self) -> Result<Vec<(EventBatch, Vec<RowRef>)>, IngestError> {
        let mut batches = Vec::new();
        let mut failed = None;
        for family in &mut self.layouts.families {
            match family.flush(&self.walker.names) {
                Ok(batch) => batches.extend(batch),
                Err(error) => failed = Some(error),
            }
        }
        self.rows = 0;
        self.flushes += 1;
        let columns: usize = self.layouts.families.iter().map(Family::width).sum();
        if self.walker.names.len() > NAMES_MAX || columns > COLUMNS_MAX || self.flushes >= FLUSHES_MAX {
            self.layouts.forget();
            self.verdicts.clear();
            self.walker = Walker::new(self.seed);
            self.shapes.forget();
            self.scopes.iter_mut().for_each(|scope| scope.keys_learnt = 0);
            self.flushes = 0;
        } else if self.shapes.is_full() {
            self.shapes.forget();
        }
        failed.map_or(Ok(batches), Err)
    }
}

/// The same vector, empty, for texts of another body.
#[expect(clippy::unnecessary_filter_map, reason = "it changes the lifetime, which a filter cannot")]
fn recycle<'b>(mut values: Vec<Atom<'_>>) -> Vec<Atom<'b>> {
    values.clear();
    // Collecting an emptied vector into one of the same size of item keeps the allocation.
    values.into_iter().filter_map(|_| None).collect()
}

/// Fills the core columns that the mapping gives; `taken` gets the cells that are kept exactly by one.
fn fill_core(plan: &Plan, family: &mut Family, row: &Row<'_, '_>, scratch: &mut Scratch, taken: &mut Vec<usize>) {
    for column in &plan.columns {
        for rule in &column.rules {
            let exact = match column.kind {
                CoreKind::Text => rule.text(row, scratch).map(|text| {
                    family.core_text(column.core, text);
                    true
                }),
                CoreKind::Int => rule.int(row, scratch).map(|number| {
                    family.core_number(column.core, i128::from(number));
                    true
                }),
                CoreKind::Time => rule.time(row, scratch).map(|us| {
                    family.core_number(column.core, i128::from(us));
                    column.core != TIME
                }),
                CoreKind::Decimal => rule.text(row, scratch).and_then(decimal::parse).map(|decimal| {
                    family.core_number(column.core, decimal.unscaled);
                    decimal.exact
                }),
            };
            let Some(exact) = exact else { continue };
            taken.extend(rule.plain_cell().filter(|_| exact));
            break;
        }
    }
}

/// The id that the event itself brings.
fn own_id<'s>(plan: &'s Plan, row: &Row<'_, 's>, scratch: &'s mut Scratch) -> Option<&'s str> {
    for rule in &plan.ids {
        // The borrow of the found text must not outlive a rule that found none.
        if rule.text(row, scratch).is_some() {
            return rule.text(row, scratch);
        }
    }
    None
}

/// Fills the columns of own fields.
fn fill_own(plan: &Plan, family: &mut Family, row: &Row<'_, '_>, taken: &[usize], text: &mut String) {
    for (at, (slot, cell)) in plan.slots.iter().zip(row.cells).enumerate() {
        let column = match *slot {
            Slot::Own(column) => column,
            Slot::Shadow(core, _) if is_in_core(family, core, cell.value, text) => continue,
            Slot::Consumed(_) if taken.contains(&at) => continue,
            Slot::Shadow(_, raw) | Slot::Consumed(raw) => family.column_of(raw),
        };
        match cell.value {
            CellValue::Atom(Atom::Text(text)) => family.own_text(column, text),
            CellValue::Atom(atom) => match row.exact_text(at, atom) {
                Some(text) if !matches!(slot, Slot::Own(_)) => family.own_atom(column, Atom::Text(text)),
                _ => family.own_atom(column, atom),
            },
            CellValue::List { start, len } => {
                let items = row.items.get(start as usize..(start + len) as usize).unwrap_or_default();
                family.own_list(column, items);
            }
        }
    }
}

/// Whether a core column says just what the event's field of its name says.
fn is_in_core(family: &Family, core: usize, value: CellValue<'_>, text: &mut String) -> bool {
    let (Some(column), CellValue::Atom(atom)) = (family.core.get(core), value) else { return false };
    match (column.last_text(family.len()), atom) {
        (Some(held), Atom::Text(own)) => held == own.as_bytes(),
        (Some(held), other) => {
            text.clear();
            other.write_text(text);
            held == text.as_bytes()
        }
        (None, Atom::Int(own)) => column.last_int(family.len()).is_some_and(|held| i64::from(held) == own),
        (None, _) => false,
    }
}
